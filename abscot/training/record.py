"""train_logs/TAG.json, and the training curves for people who watch."""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from abscot.common import files, ranks
from abscot.common.errors import UserError
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

FLUSH_S = 10


class StepLog:
    """The steps before `first_step` are kept from the file; later ones belong to a run that was
    killed.
    """

    def __init__(self, path: Path, first_step: int, meta: dict):
        self.path, self.meta = path, meta
        old = json.loads(path.read_text())["steps"] if path.is_file() and first_step else []
        self.steps = [entry for entry in old if entry["step"] < first_step]
        if len(self.steps) != first_step and ranks.rank() == 0:
            raise ValueError(
                f"{path}: holds {len(self.steps)} of the {first_step} steps before the checkpoint"
            )
        self.flushed_s = time.monotonic()

    def add(self, entry: dict) -> None:
        self.steps.append(entry)
        if time.monotonic() - self.flushed_s > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.flushed_s = time.monotonic()
        if ranks.rank() == 0:
            files.write_json_atomic(self.path, {"meta": self.meta, "steps": self.steps})


VALUES = (
    "loss",
    "loss_z",
    "loss_y",
    "lr",
    "grad_norm",
    "tokens_per_s",
    "mfu",
    "peak_bytes",
    "epoch",
)


class Trackers:
    """Those that the recipe names, on rank 0. steps: the log of a resumed run, up to where it goes
    on.

    Raises UserError for one that is not installed.
    """

    def __init__(self, recipe: Recipe, run: Run, tag: str, steps: list[dict]):
        makers = {"tensorboard": _tensorboard, "wandb": _hosted, "trackio": _hosted}
        names = recipe.trackers if ranks.rank() == 0 else []
        self.open = []
        for name in names:
            try:
                self.open.append(makers[name](name, recipe, run, tag, steps))
            except ImportError:
                mend = f".venv/bin/pip install {name}, or leave it out of the recipe"
                raise UserError(f"trackers: {name} is not installed; {mend}") from None

    def log(self, entry: dict) -> None:
        for write, _ in self.open:
            write(_values(entry), entry["step"])

    def close(self) -> None:
        for _, close in self.open:
            close()


def _values(entry: dict) -> dict[str, float]:
    return {f"train/{key}": entry[key] for key in VALUES if entry[key] is not None}


def _tensorboard(_, recipe: Recipe, run: Run, tag: str, steps: list[dict]):
    """Written anew from the log at each start: what a kill has left unwritten, or written too much,
    is gone.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(run.tensorboard / tag, ignore_errors=True)
    writer = SummaryWriter(run.tensorboard / tag)

    def write(values: dict, step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    for entry in steps:
        write(_values(entry), entry["step"])
    return write, writer.close


def _hosted(name: str, recipe: Recipe, run: Run, tag: str, steps: list[dict]):
    """W&B and trackio share an interface."""
    import importlib

    library = importlib.import_module(name)
    if not hasattr(library, "init"):  # a folder ./wandb of earlier runs imports too
        raise ImportError
    same = {"id": f"{recipe.name}-{tag}", "dir": run.root} if name == "wandb" else {}
    session = library.init(
        project="abscot", name=f"{recipe.name}-{tag}", resume="allow", config=asdict(recipe), **same
    )
    return lambda values, step: session.log(values, step=step), session.finish
