"""The plan that a run keeps."""

import numpy as np
import pytest

from abscot.common.errors import UserError
from abscot.method.lineage import Training
from abscot.method.phases import PHASES
from abscot.packing.batches import Documents
from abscot.packing.make_plan import make_plan
from abscot.packing.phase_plan import kept_plan, plan_of
from abscot.packing.plan import Plan
from abscot.recipe.run import Run
from kit.plans import CAPACITY
from kit.stores import (
    VOCAB,
    documents_of,
    make_store,
    make_traces,
)


def test_a_kept_plan_is_read_again_unless_it_was_made_from_something_else(tmp_path):
    lengths = np.random.default_rng(0).integers(1, CAPACITY, 300)
    path, calls = tmp_path / "plans" / "pi1_phaseA.npz", []

    def plan(seed: int) -> Plan:
        def make() -> Plan:
            calls.append(seed)
            return make_plan(
                lengths,
                lengths,
                lengths,
                seed=seed,
                epochs=1,
                capacity_tokens=CAPACITY,
                global_batch_examples=16,
            )

        return kept_plan(path, {"seed": seed}, make)

    made, read = plan(0), plan(0)
    assert calls == [0] and read.hash == made.hash
    for world in (1, 3):
        both = zip(made.step(3).micro_steps(world), read.step(3).micro_steps(world), strict=True)
        assert all(
            np.array_equal(a, b) for ours, theirs in both for a, b in zip(ours, theirs, strict=True)
        )
    assert plan(1).hash != made.hash and calls == [0, 1] and Plan.load(path)[0].hash == plan(1).hash


def test_the_plan_file_is_read_by_the_next_run(packed_run):
    first = plan_of(
        Training(packed_run.recipe, packed_run.run, PHASES["sft_cot"], 1),
        documents_of(packed_run, "sft_cot"),
    )
    again = plan_of(
        Training(packed_run.recipe, packed_run.run, PHASES["sft_cot"], 1),
        documents_of(packed_run, "sft_cot"),
    )
    assert first.hash == again.hash and packed_run.run.plan_of("sft_cot").is_file()


def test_traces_that_are_not_the_phases_are_refused(packed_run, tmp_path):
    run = Run(tmp_path)
    store = make_store(run, [packed_run.store.row(row) for row in range(4)])

    def plan(traces):
        documents = Documents(
            store, traces, PHASES["A"], VOCAB, packed_run.recipe.train, packed_run.recipe.traces
        )
        return plan_of(Training(packed_run.recipe, run, PHASES["A"], 1), documents)

    with pytest.raises(UserError, match="1 rows of the phase have no trace"):
        plan(make_traces(run, store, {0: [50], 1: [50], 3: [50]}))
    with pytest.raises(UserError, match="traces of deadbeef, expected random"):
        plan(
            make_traces(
                run, store, {row: [50] for row in range(4)}, {"model_fingerprint": "deadbeef"}
            )
        )
    for wrong in ({"round": 2}, {"phase": "B"}, {"store": "another"}):
        with pytest.raises(UserError, match=f"traces of {next(iter(wrong))}"):
            make_traces(run, store, {row: [50] for row in range(4)}, wrong)
