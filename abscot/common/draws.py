"""Random draws keyed by what they are for, so that they depend on nothing else."""

import hashlib

import numpy as np


def rng(*parts) -> np.random.Generator:
    """A generator keyed by what it is for, e.g. (seed, round, phase, example id): never by who
    draws when.
    """
    return np.random.default_rng(int.from_bytes(_digest(parts)[:16], "little"))


def keyed_seed(*parts) -> int:
    """A 31-bit seed keyed the same way, for samplers that take an integer."""
    return int.from_bytes(_digest(parts)[:4], "little") & 0x7FFFFFFF


def _digest(parts) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
