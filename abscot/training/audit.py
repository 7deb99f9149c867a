"""Proof from the plans and the train logs that every (epoch, row) was trained on exactly once
per phase.

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
    """What was found out about one phase; no faults means proven."""

    tag: str
    epochs: int
    rows: int  # of the phase
    steps: int
    trained: int  # (epoch, row) pairs in the log
    faults: tuple[str, ...]


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
    faults = [*_plan_faults(plan, log.meta, rows, epochs), *_step_faults(plan, log.steps)]
    trained = sum(entry.examples for entry in log.steps)
    return Finding(tag, epochs, len(rows), plan.num_steps, trained, tuple(faults))


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


def _step_faults(plan: Plan, steps: list[StepEntry]):
    """Is every step in the log exactly once, in order, with exactly the plan's rows?"""
    numbers = [entry.step for entry in steps]
    if numbers != list(range(plan.num_steps)):
        missing = sorted(set(range(plan.num_steps)) - set(numbers))
        twice = len(numbers) - len(set(numbers))
        where = f" (first: {missing[0]})" if missing else ""
        others = f"{twice} logged twice, or out of order"
        yield f"{len(missing)} of {plan.num_steps} steps missing{where}, {others}"
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
        verdict = (
            "every row exactly once per epoch"
            if not f.faults
            else f"MISMATCH ({len(f.faults)}): " + "; ".join(f.faults[:3])
        )
        lines.append(
            f"{f.tag}: {f.rows:,} rows x {f.epochs} epochs, {f.trained:,} trained in {f.steps:,} "
            f"steps: {verdict}"
        )
    return "\n".join(lines)
