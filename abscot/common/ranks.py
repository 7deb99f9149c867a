"""The ranks as the launcher set them; no engine is imported here."""

import os
import re

from abscot.common.errors import UserError

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
CORES_PER_RANK = "ABSCOT_CORES_PER_RANK"


def number_of(name: str, default: int) -> int:
    """What a launcher has put into the environment. Raises UserError for what is no number."""
    text = os.environ.get(name, "") or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{name}: expected a whole number from the launcher, found {text[:80]!r}")
    return int(text)


def rank() -> int:
    return number_of("RANK", 0)


def world_size() -> int:
    return number_of("WORLD_SIZE", 1)


def local_rank() -> int:
    return number_of("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Ranks on this machine: what the launcher says, or all of them."""
    return told_local_world_size() or world_size()


def told_local_world_size() -> int | None:
    """Ranks on this machine; each launcher has its own name for it, and some say nothing."""
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return None


def cores_per_rank() -> int:
    """CPU cores of this rank: what its launcher gave it, or its share of the machine's."""
    given = os.environ.get(CORES_PER_RANK, "")
    return int(given) if given.isdigit() else max(1, (os.cpu_count() or 1) // local_world_size())


def without_ranks(environ: dict[str, str]) -> dict[str, str]:
    """The environment for a process that must not join this one's process group."""
    return {key: value for key, value in environ.items() if key not in RANK_VARIABLES}
