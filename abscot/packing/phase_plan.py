"""The plan of a phase of a run: made once, kept, checked against traces and shards."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from abscot.common import files, ranks
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.generation.trace_set import TraceSet
from abscot.method.lineage import Training
from abscot.method.schedules import RANDOM
from abscot.model.shape import ModelShape
from abscot.packing.batches import Documents
from abscot.packing.make_plan import make_plan
from abscot.packing.plan import Plan, rows_digest


def plan_of(training: Training, documents: Documents) -> Plan:
    """The training's plan, the same on every rank: a pure function of recipe, shards and trace
    lengths.

    It is kept in the run directory, where a resumed run and the audit read it.
    Raises UserError for traces that are not exactly those of the phase's rows, or of another model.
    """
    store = documents.store
    rows = training.rows(len(store))
    if documents.traces:
        _check_traces(training, documents.traces, training.trace_rows(len(store)))
    options = _options(training)

    def make() -> Plan:
        lengths = documents.lengths()
        return make_plan(
            lengths["total"],
            lengths["pairs"],
            lengths["supervised"],
            **options,
            rows=rows,
            row_name=documents.row_name,
        )

    train = training.recipe.train
    made_from = {
        **options,
        "store": store.hash,
        "traces": files.fingerprint(training.traces) if documents.traces else None,
        "rows": rows_digest(rows),
        "pause_tokens": len(documents.pause),
        "supervised": [train.supervise_begin, train.supervise_end],
    }
    plan = kept_plan(training.plan_file, made_from, make)
    log(
        f"plan {training.tag}: {len(rows):,} rows, {plan.num_bins:,} bins, {plan.num_steps:,} "
        f"steps, {plan.hash}"
    )
    return plan


def _options(training: Training) -> dict:
    """The arguments of make_plan that do not depend on lengths."""
    recipe, train = training.recipe, training.recipe.train
    return {
        "seed": recipe.seed,
        "round_": training.round,
        "phase": training.phase.name,
        "epochs": training.epochs,
        "capacity_tokens": train.capacity_tokens,
        "global_batch_examples": train.global_batch_examples,
        "global_batch_tokens": train.global_batch_tokens,
        "pair_cost": ModelShape.of_directory(training.run.base).pair_cost,
    }


def _check_traces(training: Training, traces: TraceSet, rows: np.ndarray) -> None:
    directory = training.traces
    again = f"delete {directory} and run launch/traces.py again"
    if not np.array_equal(traces.rows, rows):
        missing, foreign = np.setdiff1d(rows, traces.rows), np.setdiff1d(traces.rows, rows)
        raise UserError(
            f"{directory}: {len(missing)} rows of the phase have no trace and {len(foreign)} "
            f"traces are of other rows; {again}"
        )
    maker = training.trace_maker
    if traces.meta.imported is not None:
        return  # whoever imported them answers for the model
    if maker is None or files.is_done(maker):
        expected = files.fingerprint(maker) if maker else RANDOM
        if traces.meta.model_fingerprint != expected:
            raise UserError(
                f"{directory}: traces of {traces.meta.model_fingerprint}, expected "
                f"{expected} ({maker or 'random traces'}); {again}"
            )


PLAN_VERSION = 1  # of the moves: a plan kept by another version is made again


def kept_plan(path: Path, made_from: dict, make: Callable[[], Plan]) -> Plan:
    """The plan kept at `path` if it was made from the same (plain) values, else a new one, kept
    there.
    """
    text = json.dumps({"version": PLAN_VERSION, **made_from}, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    if path.exists():
        plan, kept_key = Plan.load(path)
        if kept_key == key:
            return plan
    plan = make()
    if ranks.rank() == 0:
        plan.save(path, key)
    return plan
