"""The plan of a phase of a run: made once, kept, checked against traces and shards."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from abscot.common import files, ranks
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.generation.trace_set import RANDOM, TraceSet
from abscot.method.lineage import epochs_of, rows_of_phase, source_model
from abscot.method.phases import Phase
from abscot.model.shape import ModelShape
from abscot.packing.batches import Documents
from abscot.packing.make_plan import make_plan
from abscot.packing.plan import Plan, rows_digest
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


def plan_of(recipe: Recipe, run: Run, phase: Phase, round_: int, documents: Documents) -> Plan:
    """The phase's plan, the same on every rank: a pure function of recipe, shards and trace
    lengths.

    It is kept in the run directory, where a resumed run and the audit read it.
    Raises UserError for traces that are not exactly those of the phase's rows, or of another model.
    """
    tag, store, train = phase.tag(round_), documents.store, recipe.train
    rows = rows_of_phase(recipe, phase, round_, len(store))
    if documents.traces:
        _check_traces(recipe, run, phase, round_, documents.traces, rows)
    options = {
        "seed": recipe.seed,
        "round_": round_,
        "phase": phase.name,
        "epochs": epochs_of(recipe, phase),
        "capacity_tokens": train.capacity_tokens,
        "global_batch_examples": train.global_batch_examples,
        "global_batch_tokens": train.global_batch_tokens,
        "pair_cost": ModelShape.of_directory(run.base).pair_cost,
    }

    def make() -> Plan:
        lengths = documents.lengths()
        return make_plan(
            lengths["total"],
            lengths["pairs"],
            lengths["supervised"],
            **options,
            rows=rows,
            row_name=lambda row: f"{run.shards}: row {row} ({store.row(row).id})",
        )

    made_from = {
        **options,
        "store": store.hash,
        "traces": files.fingerprint(run.traces(tag)) if documents.traces else None,
        "rows": rows_digest(rows),
        "pause_tokens": len(documents.pause),
        "supervised": [train.supervise_begin, train.supervise_end],
    }
    plan = kept_plan(plan_file(run, tag), made_from, make)
    log(
        f"plan {tag}: {len(rows):,} rows, {plan.num_bins:,} bins, {plan.num_steps:,} steps, "
        f"{plan.hash}"
    )
    return plan


def _check_traces(
    recipe: Recipe, run: Run, phase: Phase, round_: int, traces: TraceSet, rows: np.ndarray
) -> None:
    directory = run.traces(phase.tag(round_))
    again = f"delete {directory} and run launch/traces.py again"
    if not np.array_equal(traces.rows, rows):
        missing, foreign = np.setdiff1d(rows, traces.rows), np.setdiff1d(traces.rows, rows)
        raise UserError(
            f"{directory}: {len(missing)} rows of the phase have no trace and {len(foreign)} "
            "traces are of"
            f" other rows; {again}"
        )
    model = source_model(recipe, run, round_, phase.name)
    if model is None or files.is_done(model):
        expected = files.fingerprint(model) if model else RANDOM
        if traces.meta["model_fingerprint"] != expected:
            raise UserError(
                f"{directory}: traces of model {traces.meta['model_fingerprint']}, expected "
                f"{expected}"
                f" ({model or 'random traces'}); {again}"
            )


PLAN_VERSION = 1  # of the moves: a plan kept by another version is made again


def plan_file(run: Run, tag: str) -> Path:
    """Where a phase's plan is kept."""
    return run.root / "plans" / f"{tag}.npz"


def kept_plan(path: Path, made_from: dict, make: Callable[[], Plan]) -> Plan:
    """The plan kept at `path` if it was made from the same (plain) values, else a new one, kept
    there.
    """
    text = json.dumps({"version": PLAN_VERSION, **made_from}, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    if path.is_file():
        plan, kept_key = Plan.load(path)
        if kept_key == key:
            return plan
    plan = make()
    if ranks.rank() == 0:
        plan.save(path, key)
    return plan
