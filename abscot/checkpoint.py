"""ZeRO state and TrainState of one phase: atomic, checksummed, verified on load, never guessed."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch.distributed

from abscot import dist, paths
from abscot.config import UserError

PREFIX = "step_"


@dataclass
class TrainState:
    """What a resumed run must agree on. `step` is the number of optimizer steps already taken."""

    step: int
    epoch: int
    tokens: int
    plan_hash: str
    world_size: int


def save(engine, directory: Path, state: TrainState, keep: int) -> None:
    """Writes directory/step_N on all ranks; it exists only when it is complete. Keeps the `keep` newest."""
    final = directory / f"{PREFIX}{state.step:07}"
    temp = directory / f".{final.name}.partial"
    if dist.rank() == 0:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(temp), tag="zero", client_state=dataclasses.asdict(state), save_latest=False)
    torch.distributed.barrier()
    if dist.rank() == 0:
        paths.seal(temp, dataclasses.asdict(state))
        shutil.rmtree(final, ignore_errors=True)
        temp.rename(final)
        for old in checkpoints(directory)[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()


def checkpoints(directory: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(path for path in directory.glob(f"{PREFIX}*") if paths.is_done(path))


def newest(directory: Path, plan_hash: str, world_size: int) -> Path | None:
    """The newest checkpoint of this very plan and world size, verified; None where there is none.

    Rank 0 reads and checks it once for all ranks. Raises UserError, on every rank, for a damaged one (naming the one
    before it), and for one of another plan or world size.
    """
    answer = [None, None]
    if dist.rank() == 0:
        try:
            answer[0] = _newest(directory, plan_hash, world_size)
        except UserError as error:
            answer[1] = str(error)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(answer, src=0)
    if answer[1]:
        raise UserError(answer[1])
    return answer[0]


def _newest(directory: Path, plan_hash: str, world_size: int) -> Path | None:
    found = checkpoints(directory)
    if not found:
        return None
    last = found[-1]
    try:
        paths.verify(last)
    except UserError as error:
        before = f"; the one before it, {found[-2].name}, is then used" if len(found) > 1 else "; the phase then starts over"
        raise UserError(f"damaged checkpoint: {error}{before}") from None
    state = state_of(last)
    if state.plan_hash != plan_hash:
        raise UserError(f"{last}: made with other data or batch settings than this recipe; delete {directory} to start over")
    if state.world_size != world_size:
        raise UserError(f"{last}: made on {state.world_size} ranks, this is {world_size}; use as many, or delete {directory}")
    return last


def clear(directory: Path) -> None:
    """Removes the checkpoints of a phase whose model is published: nothing goes on from them."""
    for path in checkpoints(directory):
        shutil.rmtree(path)


def state_of(checkpoint: Path) -> TrainState:
    return TrainState(**json.loads((checkpoint / paths.DONE).read_text())["meta"])


def load(engine, checkpoint: Path) -> TrainState:
    """Restores weights, optimizer and step on all ranks. The files are this project's own, checksums checked before."""
    path, _ = engine.load_checkpoint(str(checkpoint), tag="zero")
    if path is None:
        raise RuntimeError(f"{checkpoint}: DeepSpeed could not load it")
    return state_of(checkpoint)
