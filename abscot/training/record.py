"""train_logs/TAG.json, and the training curves for people who watch."""

import itertools
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from abscot.common import ranks
from abscot.common.disk import naming
from abscot.common.errors import UserError
from abscot.common.record import Record
from abscot.common.secrets import redacted
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

FLUSH_S = 10


class StepEntry(Record):
    """One optimizer step. Losses are means over supervised tokens, in nats; 0 where a segment is
    not supervised. mfu: None on a CPU. rows_digest: of the rows that the ranks fed (plan.py).
    """

    step: int
    epoch: int
    loss: float
    loss_z: float
    loss_y: float
    lr: float
    grad_norm: float
    supervised_tokens: int
    tokens: int
    tokens_per_s: float
    mfu: float | None
    peak_bytes: int
    wall_s: float
    examples: int
    rows_digest: int

    def summary(self) -> str:
        """The entry in a line of progress."""
        mfu = f"  mfu {self.mfu:.1%}" if self.mfu is not None else ""
        speed = f"{self.tokens_per_s:,.0f} tokens/s{mfu}  {self.peak_bytes / 1e9:.1f} GB"
        return f"loss {self.loss:.4f}  lr {self.lr:.2e}  {speed}"


class TrainLogMeta(Record):
    """What a training is. num_steps: planned; rows: of one epoch."""

    tag: str
    round: int
    phase: str
    world_size: int
    plan_hash: str
    num_steps: int
    rows: int
    epochs: int
    seed: int
    peak_lr: float


class TrainLog(Record):
    """train_logs/TAG.json: the steps that are part of the model, in order."""

    meta: TrainLogMeta
    steps: list[StepEntry]


class StepLog:
    """The log as it grows: written atomically, cut back to the step that a training resumes at."""

    def __init__(self, path: Path, first_step: int, meta: TrainLogMeta):
        self.path, self.meta = path, meta
        if path.is_dir():
            raise UserError(f"{path}: a directory where the train log goes; remove it")
        self.steps = steps_before(path, first_step, meta.plan_hash) if first_step else []
        self.flushed_s = time.monotonic()

    def add(self, entry: StepEntry) -> None:
        self.steps.append(entry)
        if time.monotonic() - self.flushed_s > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.flushed_s = time.monotonic()
        if ranks.rank() == 0:
            TrainLog.model_construct(meta=self.meta, steps=self.steps).write(self.path)


def steps_before(path: Path, first_step: int, plan_hash: str) -> list[StepEntry]:
    """Steps 0 to first_step of the log at `path`, as far as it holds them. Raises UserError for a
    log that is none, or of another plan.
    """
    log = TrainLog.read(path, mend="")
    if log.meta.plan_hash != plan_hash:
        raise UserError(f"{path}: of plan {log.meta.plan_hash}, expected {plan_hash}")
    known = itertools.takewhile(lambda pair: pair[0] == pair[1].step, enumerate(log.steps))
    return [entry for _, entry in itertools.islice(known, first_step)]


TRACKED = (
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
    """Those that the recipe names, on rank 0. steps: the log of a resumed training, up to where it
    goes on. Raises UserError for one that is not installed.
    """

    def __init__(self, recipe: Recipe, run: Run, tag: str, steps: list[StepEntry]):
        makers = {"tensorboard": _tensorboard, "wandb": _hosted, "trackio": _hosted}
        names = recipe.trackers if ranks.rank() == 0 else []
        self.open, self.directory = [], run.tensorboard / tag
        for name in names:
            try:
                self.open.append(makers[name](name, recipe, run, tag, steps))
            except ImportError:
                mend = f".venv/bin/pip install {name}, or leave it out of the recipe"
                raise UserError(f"trackers: {name} is not installed; {mend}") from None

    def log(self, entry: StepEntry) -> None:
        with naming(self.directory):
            for write, _ in self.open:
                write(_tracked(entry), entry.step)

    def close(self) -> None:
        with naming(self.directory):
            for _, close in self.open:
                close()


def _tracked(entry: StepEntry) -> dict[str, float]:
    values = {name: getattr(entry, name) for name in TRACKED}
    return {f"train/{name}": value for name, value in values.items() if value is not None}


def _tensorboard(_, recipe: Recipe, run: Run, tag: str, steps: list[StepEntry]):
    """Written anew from the log at each start: what a kill has left unwritten, or written too much,
    is gone. A step is on disk when it is logged: a model that is published is not started again.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(run.tensorboard / tag, ignore_errors=True)
    writer = SummaryWriter(run.tensorboard / tag)

    def add(values: dict, step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    def write(values: dict, step: int) -> None:
        add(values, step)
        writer.flush()

    for entry in steps:
        add(_tracked(entry), entry.step)
    writer.flush()
    return write, writer.close


def _hosted(name: str, recipe: Recipe, run: Run, tag: str, steps: list[StepEntry]):
    """W&B and trackio share an interface."""
    import importlib

    library = importlib.import_module(name)
    if not hasattr(library, "init"):  # a folder ./wandb of earlier runs imports too
        raise ImportError
    same = {"id": f"{recipe.name}-{tag}", "dir": run.root} if name == "wandb" else {}
    session = library.init(
        project="abscot",
        name=f"{recipe.name}-{tag}",
        resume="allow",
        config=redacted(asdict(recipe)),
        **same,
    )
    return lambda values, step: session.log(values, step=step), session.finish
