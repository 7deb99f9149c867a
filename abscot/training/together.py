"""What the ranks find out together: where one must refuse, all do, and none waits for it."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import torch.distributed

from abscot.common import ranks
from abscot.common.errors import UserError

Found = TypeVar("Found")


def on_all_ranks(look: Callable[[], Found]) -> list[Found]:
    """What `look()` gives on each rank. Raises, on every rank, the UserError or OSError of the
    lowest rank that had one.
    """
    found = error = None
    try:
        found = look()
    except (UserError, OSError) as caught:
        error = caught
    everyone = [(found, error)]
    if torch.distributed.is_initialized():
        everyone = [None] * ranks.world_size()
        torch.distributed.all_gather_object(everyone, (found, error))
    if errors := [error for _, error in everyone if error]:
        raise errors[0]
    return [found for found, _ in everyone]


def on_first_rank(look: Callable[[], Found]) -> Found:
    """What `look()` gives on rank 0, on every rank: what several see of a shared file system may
    differ. Its error is raised on all.
    """
    return on_all_ranks(lambda: look() if ranks.rank() == 0 else None)[0]


@contextlib.contextmanager
def held_by_first_rank(lease: contextlib.AbstractContextManager):
    """Rank 0 in `lease`, the others beside it. Where it is refused, all raise the refusal."""
    with contextlib.ExitStack() as held:
        on_first_rank(lambda: held.enter_context(lease) and None)
        yield
