"""Where a training goes on: its newest checkpoint, once it is known to be whole."""

from pathlib import Path

from abscot.common import files, ranks
from abscot.common.errors import DamagedInput, UserError
from abscot.model import checkpoint_dirs
from abscot.training import checkpoint
from abscot.training.record import log_before
from abscot.training.together import on_all_ranks, on_first_rank


def newest(directory: Path, plan_hash: str, train_log: Path) -> Path | None:
    """The newest checkpoint of this very plan, verified, with all steps before it in the train log;
    None where there is none.

    The ranks check its files between them. Raises UserError, on every rank, for a damaged one or a
    log that is lost, naming the checkpoint to go on from, and for one of another plan.
    """
    found = on_first_rank(lambda: checkpoint_dirs.checkpoints(directory))
    if not found:
        return None
    last = found[-1]
    on_first_rank(lambda: _check_plan(last, plan_hash))
    try:
        on_all_ranks(lambda: _check_files(last))
    except DamagedInput as error:
        raise UserError(f"damaged checkpoint: {error}, {_then(found[:-1])}") from None
    on_first_rank(lambda: _check_log(found, plan_hash, train_log))
    return last


def _check_plan(saved: Path, plan_hash: str) -> None:
    try:
        state = checkpoint.state_of(saved)
    except UserError:
        return  # damaged, which is said later
    if state.plan_hash != plan_hash:
        raise UserError(
            f"{saved}: made with other data or batch settings than this recipe; delete "
            f"{saved.parent} to start over"
        )


def _check_files(saved: Path) -> None:
    """This rank's share of them."""
    state, names = checkpoint.state_of(saved), checkpoint.tensor_files(saved)
    if not names:
        raise DamagedInput(saved, f"{saved / files.DONE}: lists no tensors")
    if saved != checkpoint_dirs.at_step(saved.parent, state.step):
        raise DamagedInput(saved, f"{saved}: holds step {state.step}")
    files.verify(saved, part=ranks.rank(), parts=ranks.world_size())


def _check_log(found: list[Path], plan_hash: str, train_log: Path) -> None:
    """The steps before the newest of `found` must stand in the log, or it would have a gap."""
    needed = checkpoint.state_of(found[-1]).step
    try:
        logged = len(log_before(train_log, needed, plan_hash).steps)
        what = f"{train_log}: holds {logged} of the {needed} steps before {found[-1]}"
    except UserError as error:
        logged, what = 0, str(error)
    if logged < needed:
        usable = [path for path in found if path <= checkpoint_dirs.at_step(path.parent, logged)]
        lost = [str(path) for path in found if path not in usable]
        raise UserError(f"{what}; put it back, or delete {' and '.join(lost)}, {_then(usable)}")


def _then(left: list[Path]) -> str:
    """What the same command does where only the checkpoints `left` are there."""
    return f"to go on from {left[-1].name}" if left else "to start the training over"
