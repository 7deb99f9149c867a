"""Proof from the plans and the train logs that every (epoch, row) was trained on exactly once
per phase, and at most once in one that ended when its channel was open.

A phase's plan (plans/TAG.npz) says which rows each step has. Its log says, for each optimizer step
that is part of the model, which rows the ranks fed: `rows_digest`, made by every rank from its
batches and summed over ranks. Steps that a killed run did after its last checkpoint are not in the
log: their weights were thrown away as well.
"""

from dataclasses import dataclass

import numpy as np

from abscot.common.errors import UserError
from abscot.common.files import is_done
from abscot.data.manifest import Manifest
from abscot.method.lineage import Training, baseline_trainings, trainings
from abscot.packing.plan import Plan, rows_digest
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe
from abscot.training.record import StepEntry, TrainLog, TrainLogMeta


@dataclass(frozen=True)
class Finding:
    """What was found out about one phase; no faults means proven. steps: those that make it whole;
    opened: the channel at which it ended before all that were planned.
    """

    tag: str
    epochs: int
    rows: int  # of the phase
    steps: int
    trained: int  # (epoch, row) pairs in the log
    faults: tuple[str, ...]
    planned_steps: int = 0
    opened: float | None = None


def audit(recipe: Recipe, run: Run) -> list[Finding]:
    """One finding per phase: those of all rounds, and each baseline that has a log.

    Raises UserError for a directory that holds no shards, and for a damaged manifest, plan or log.
    """
    if not is_done(run.shards):
        raise UserError(
            f"{run.shards}: no shards, so nothing to audit; expected the directory of a run, e.g. "
            "runs/NAME"
        )
    num_rows = Manifest.of_store(run.shards).rows
    trained = [t for t in baseline_trainings(recipe, run) if t.train_log.is_file()]
    return [_audit_training(t, num_rows) for t in (*trainings(recipe, run), *trained)]


def _audit_training(training: Training, num_rows: int) -> Finding:
    tag, rows, epochs = training.tag, training.rows(num_rows), training.epochs
    log_path, plan_path = training.train_log, training.plan_file
    for path in (log_path, plan_path):
        if not path.is_file():
            return Finding(tag, epochs, len(rows), 0, 0, (f"not trained: no {path}",))
    log = TrainLog.read(log_path)
    plan, _ = Plan.load(plan_path)
    end = min(log.opening.step + 1, plan.num_steps) if log.opening else plan.num_steps
    faults = [
        *_plan_faults(plan, log.meta, rows, epochs),
        *_channel_faults(training, plan, log),
        *_step_faults(plan, log.steps, end),
    ]
    trained = sum(entry.examples for entry in log.steps)
    opened = log.opening.channel if end < plan.num_steps else None
    return Finding(tag, epochs, len(rows), end, trained, tuple(faults), plan.num_steps, opened)


def _plan_faults(plan: Plan, meta: TrainLogMeta, rows: np.ndarray, epochs: int):
    """Is this the plan that was trained, and does it hold every row once per epoch?"""
    if meta.plan_hash != plan.hash:
        yield f"trained by plan {meta.plan_hash}, the one kept is {plan.hash}"
    if int(plan.epochs[-1]) + 1 != epochs:
        yield f"the plan has {int(plan.epochs[-1]) + 1} epochs, the recipe {epochs}"
    row_epochs = np.repeat(plan.epochs, np.diff(plan.bin_starts[plan.step_starts]))
    for epoch in range(int(plan.epochs[-1]) + 1):
        planned, counts = np.unique(plan.rows[row_epochs == epoch], return_counts=True)
        missing, foreign = np.setdiff1d(rows, planned), np.setdiff1d(planned, rows)
        if len(missing) or len(foreign) or counts.max() > 1:
            yield (
                f"epoch {epoch} of the plan: {len(missing)} rows missing, {len(foreign)} foreign, "
                f"{int((counts > 1).sum())} more than once"
            )


def _channel_faults(training: Training, plan: Plan, log: TrainLog):
    """May its channel have ended it? It was measured when it was due, on the rows that the recipe
    keeps, and held against what the recipe says.
    """
    train, measured = training.recipe.train, [entry.step + 1 for entry in log.channel]
    until = train.until_channel if training.measures_channel else None
    if log.meta.until_channel != until:
        yield f"ended by a channel of {log.meta.until_channel}, the recipe says {until}"
    if not training.measures_channel:
        if measured:
            yield f"a channel measured after {measured[0]} steps, where there is none"
        return
    due = range(train.channel_every_steps, len(log.steps) + 1, train.channel_every_steps)
    last = [len(log.steps)] * (len(log.steps) == plan.num_steps)
    if measured != sorted({*due, *last}):
        yield (
            f"the channel measured after {len(measured)} steps, which are not those after which "
            f"it was due"
        )


def _step_faults(plan: Plan, steps: list[StepEntry], end: int):
    """Is every step up to `end` in the log exactly once, in order, with exactly the plan's rows,
    and none behind it?
    """
    numbers = [entry.step for entry in steps]
    if numbers != list(range(end)):
        missing = sorted(set(range(end)) - set(numbers))
        twice = len(numbers) - len(set(numbers))
        behind = sum(number >= end for number in numbers)
        where = f" (first: {missing[0]})" if missing else ""
        others = f"{twice} logged twice, {behind} behind the end, or out of order"
        yield f"{len(missing)} of {end} steps missing{where}, {others}"
    for entry in steps:
        if entry.step not in range(plan.num_steps):
            continue
        planned = plan.step(entry.step)
        if (entry.examples, entry.rows_digest) != (planned.examples, rows_digest(planned.rows)):
            yield (
                f"step {entry.step}: the ranks fed {entry.examples} rows that are not the plan's "
                f"{planned.examples}"
            )


def render(findings: list[Finding]) -> str:
    lines = []
    for f in findings:
        verdict = "every row exactly once per epoch"
        if f.opened is not None:
            verdict = (
                f"every row at most once per epoch, as planned up to the end: the channel reached "
                f"{f.opened:.2f} after {f.steps:,} of {f.planned_steps:,} steps"
            )
        if f.faults:
            verdict = f"MISMATCH ({len(f.faults)}): " + "; ".join(f.faults[:3])
        lines.append(
            f"{f.tag}: {f.rows:,} rows x {f.epochs} epochs, {f.trained:,} trained in {f.steps:,} "
            f"steps: {verdict}"
        )
    return "\n".join(lines)
