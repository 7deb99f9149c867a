"""train_logs/TAG.json, and the training curves for people who watch."""

import itertools
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from abscot.common import ranks
from abscot.common.disk import naming
from abscot.common.errors import UserError
from abscot.common.record import Record
from abscot.common.secrets import redacted
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

FLUSH_S = 10
Share = Annotated[float, Field(ge=0, le=1)]


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


class ChannelEntry(Record):
    """The channel after a step, on rows that nothing trains on: channel is the share of rows whose
    whole answer greedy decoding would write, channel_tokens that of the answers' tokens.
    """

    step: NonNegativeInt
    rows: PositiveInt
    channel: Share
    channel_tokens: Share

    def summary(self) -> str:
        """The entry in a line of progress."""
        return f"channel {self.channel:.2f} ({self.channel_tokens:.2f} of its tokens)"


class TrainLogMeta(Record):
    """What a training is. num_steps: planned; rows: of one epoch; until_channel: the channel at
    which it ends before.
    """

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
    until_channel: Share | None = None


class TrainLog(Record):
    """train_logs/TAG.json: the steps that are part of the model, and the channel as it was measured
    between them, both in order.
    """

    meta: TrainLogMeta
    steps: list[StepEntry]
    channel: list[ChannelEntry] = []

    @property
    def opening(self) -> ChannelEntry | None:
        """The measurement that ends the training: the first at which the channel is open."""
        until = self.meta.until_channel
        found = (e for e in self.channel if until is not None and e.channel >= until)
        return next(found, None)

    @property
    def end(self) -> int:
        """How many steps make the training whole: those planned, or fewer that opened the
        channel.
        """
        return self.opening.step + 1 if self.opening else self.meta.num_steps

    @property
    def steps_text(self) -> str:
        """`500`, or `120 of 500` where there are fewer than were planned."""
        planned = self.meta.num_steps
        return str(planned) if len(self.steps) == planned else f"{len(self.steps)} of {planned}"

    def summary(self) -> str:
        """Where it stands, in a line of progress."""
        return "  ".join(entry.summary() for entry in (*self.steps[-1:], *self.channel[-1:]))

    def closed_channel(self, title: str) -> str | None:
        """The line on a training that is whole and whose channel is not open; None for others."""
        last, until = self.channel[-1:], self.meta.until_channel
        if until is None or not last or len(self.steps) < self.end or last[0].channel >= until:
            return None
        epochs = f"all {self.meta.epochs} epochs" if self.meta.epochs > 1 else "1 epoch"
        return f"{title}: channel {last[0].channel:.2f} of {until:.2f} after {epochs}"


class StepLog:
    """The log as it grows: written atomically, cut back to the step that a training resumes at."""

    def __init__(self, path: Path, first_step: int, meta: TrainLogMeta):
        self.path = path
        if path.is_dir():
            raise UserError(f"{path}: a directory where the train log goes; remove it")
        before = log_before(path, first_step, meta.plan_hash) if first_step else None
        self.content = TrainLog.model_construct(
            meta=meta,
            steps=before.steps if before else [],
            channel=before.channel if before else [],
        )
        self.flushed_s = time.monotonic()

    def add(self, entry: StepEntry | ChannelEntry) -> None:
        of_its_kind = self.content.steps if isinstance(entry, StepEntry) else self.content.channel
        of_its_kind.append(entry)
        if time.monotonic() - self.flushed_s > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.flushed_s = time.monotonic()
        if ranks.rank() == 0:
            self.content.write(self.path)


def log_before(path: Path, first_step: int, plan_hash: str) -> TrainLog:
    """The log at `path` up to `first_step`, as far as it holds the steps before. Raises UserError
    for a log that is none, or of another plan.
    """
    log = TrainLog.read(path, mend="")
    if log.meta.plan_hash != plan_hash:
        raise UserError(f"{path}: of plan {log.meta.plan_hash}, expected {plan_hash}")
    known = itertools.takewhile(lambda pair: pair[0] == pair[1].step, enumerate(log.steps))
    steps = [entry for _, entry in itertools.islice(known, first_step)]
    measured = [entry for entry in log.channel if entry.step < len(steps)]
    return TrainLog.model_construct(meta=log.meta, steps=steps, channel=measured)


TRACKED = (
    "channel",
    "channel_tokens",
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
    """Those that the recipe names, on rank 0. before: the log of a resumed training, up to where it
    goes on. Raises UserError for one that is not installed.
    """

    def __init__(self, recipe: Recipe, run: Run, tag: str, before: TrainLog):
        makers = {"tensorboard": _tensorboard, "wandb": _hosted, "trackio": _hosted}
        names = recipe.trackers if ranks.rank() == 0 else []
        self.open, self.directory = [], run.tensorboard / tag
        for name in names:
            try:
                self.open.append(makers[name](name, recipe, run, tag, before))
            except ImportError:
                mend = f".venv/bin/pip install {name}, or leave it out of the recipe"
                raise UserError(f"trackers: {name} is not installed; {mend}") from None

    def log(self, entry: StepEntry | ChannelEntry) -> None:
        with naming(self.directory):
            for write, _ in self.open:
                write(_tracked(entry), entry.step)

    def close(self) -> None:
        with naming(self.directory):
            for _, close in self.open:
                close()


def _tracked(entry: StepEntry | ChannelEntry) -> dict[str, float]:
    values = {name: getattr(entry, name, None) for name in TRACKED}
    return {f"train/{name}": value for name, value in values.items() if value is not None}


def _tensorboard(_, recipe: Recipe, run: Run, tag: str, before: TrainLog):
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

    for entry in (*before.steps, *before.channel):
        add(_tracked(entry), entry.step)
    writer.flush()
    return write, writer.close


def _hosted(name: str, recipe: Recipe, run: Run, tag: str, _):
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
