"""Caches of compiled code, on a disk of this machine, a slot for each process.

vLLM, Inductor and Triton keep what they have compiled in the home directory, which many nodes may
share: engines and ranks that start together would wait for each other's locks there, and read
half-written files where the file system does not share locks.

    TMPDIR/abscot-UID/ENVIRONMENT/0.lock      held as long as a process uses slot 0
                                  0/vllm/  0/inductor/  0/triton/

A process takes the first slot that is free, so one that starts again finds what the last has left.
"""

import fcntl
import hashlib
import itertools
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import IO

from abscot.common.errors import UserError

FOLDERS = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
_held: list[IO] = []  # locks, until the process ends


def use_local_caches() -> None:
    """Points what is compiled in this process, and in those that it starts, to a slot of its own.
    What the user has set stays. Raises UserError where the place belongs to somebody else.
    """
    unset = [name for name in FOLDERS if not os.environ.get(name)]
    if not unset:
        return
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    place = Path(tempfile.gettempdir(), f"abscot-{os.geteuid()}")
    for directory in (place, place / environment):
        _make_private(directory)
    slot = _free_slot(place / environment)
    os.environ |= {name: str(slot / FOLDERS[name]) for name in unset}


def _make_private(directory: Path) -> None:
    """What lies in it is run as code: only this user may write there."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UserError(
            f"{directory}: expected a directory that only you can write into, for caches of "
            "compiled code; remove it, or set TMPDIR to a directory on a disk of this machine"
        )


def _free_slot(directory: Path) -> Path:
    for number in itertools.count():
        lock = open(directory / f"{number}.lock", "w")  # noqa: SIM115 (held until the end)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        return directory / str(number)
