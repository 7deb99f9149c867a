"""Batches: token by token, on any number of ranks, after any resume."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abscot.data.rows import Row
from abscot.method.lineage import Training
from abscot.method.phases import PHASES, SEGMENT_C, SEGMENT_X, SEGMENT_Y, SEGMENT_Z
from abscot.packing.batches import Documents, prefetched
from abscot.packing.phase_plan import plan_of
from abscot.packing.plan import rows_digest
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run
from kit.stores import CLOSE, OPEN, VOCAB, documents_of, make_store, make_traces


def test_a_bin_of_phase_a_token_by_token(tmp_path):
    rows = [
        Row(
            "one", np.int32([11, 12]), np.int32([21, 22, 23]), np.int32([3]), np.int32([31, 4]), "s"
        ),
        Row("two", np.int32([13]), np.int32([24]), np.int32([1]), np.int32([4]), "s"),
    ]
    run = Run(tmp_path)
    store = make_store(run, rows)
    traces = make_traces(run, store, {0: [50, 53], 1: [51]})
    recipe = load_recipe()
    documents = Documents(store, traces, PHASES["A"], VOCAB, recipe.train, recipe.traces)
    batch = documents.batch(np.array([1, 0]))
    x, c, z, y = SEGMENT_X, SEGMENT_C, SEGMENT_Z, SEGMENT_Y
    assert batch.input_ids.tolist() == [
        [13, 24, 60, 51, 61, 4, 11, 12, 21, 22, 23, 60, 50, 53, 61, 31, 4]
    ]
    assert batch.segment_id.tolist() == [[x, c, z, z, z, y, x, x, c, c, c, z, z, z, z, y, y]]
    assert batch.labels.tolist() == [[-100, -100, -100, 51, 61, 4, *[-100] * 6, 50, 53, 61, 31, 4]]
    assert batch.position_ids.tolist() == [[*range(6), *range(11)]]
    assert batch.document_id.tolist() == [[0] * 6 + [1] * 11]
    assert batch.ids == ["two", "one"] and batch.rows.tolist() == [1, 0]
    assert batch.counts().tolist() == [17, 8, 5, 3]


def test_the_thinking_baseline_uses_the_thinking_template(packed_run):
    row = packed_run.store.row(3)
    batch = documents_of(packed_run, "sft_cot").batch(np.array([3]))
    assert batch.input_ids[0].tolist() == [*row.prompt[:-2], *OPEN, *row.cot, *CLOSE, *row.answer]
    supervised = len(OPEN) + len(row.cot) + len(CLOSE) + len(row.answer)
    assert (
        batch.labels[0].tolist()
        == [-100] * (len(row.prompt) - 2) + batch.input_ids[0, -supervised:].tolist()
    )


def test_the_pause_baseline_has_unsupervised_pauses_of_full_length(packed_run):
    row = packed_run.store.row(3)
    batch = documents_of(packed_run, "pause").batch(np.array([3]))
    assert batch.input_ids[0].tolist() == [*row.prompt, 60, *[50] * 6, 61, *row.answer]
    assert (batch.labels[0] != -100).sum() == len(row.answer)


@given(
    st.sampled_from(list(PHASES)),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 59), min_size=1, max_size=6, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_lengths_foretell_what_batches_hold(packed_run, phase, begin, end, rows):
    documents = documents_of(packed_run, phase, supervise_begin=begin, supervise_end=end)
    lengths, batch = documents.lengths(), documents.batch(np.array(rows))
    assert batch.input_ids.shape[1] == lengths["total"][rows].sum()
    assert (batch.labels != -100).sum() == lengths["supervised"][rows].sum()
    for name, segment in (("X", SEGMENT_X), ("C", SEGMENT_C), ("Z", SEGMENT_Z), ("Y", SEGMENT_Y)):
        assert (batch.segment_id == segment).sum() == lengths[name][rows].sum()
    first = batch.position_ids[0] == 0
    assert first.sum() == len(rows) and (batch.labels[0][first] == -100).all()


def test_pairs_are_those_of_the_mask(packed_run):
    from abscot.method.masks import dense_mask

    for phase in PHASES:
        documents = documents_of(packed_run, phase)
        batch = documents.batch(np.arange(5))
        mask = dense_mask(batch.document_id, batch.segment_id, PHASES[phase].hidden)
        assert mask.sum() == documents.lengths()["pairs"][:5].sum()


def test_an_idle_rank_gets_a_document_without_labels(packed_run):
    for phase in PHASES:
        batch = documents_of(packed_run, phase).batch(None)
        assert batch.input_ids.shape[1] > 1 and (batch.labels == -100).all()
        assert batch.ids == [] and batch.counts().tolist() == [0, 0, 0, 0]


def sequence(plan, documents, world: int, first_step: int = 0):
    """(step, sorted ids over all ranks, supervised tokens, digest) of every step, as the trainer
    sees it.
    """
    ranks = [prefetched(plan, documents, rank, world, first_step) for rank in range(world)]
    for parts in zip(*ranks, strict=True):
        bins = [batch for _, micro in parts for batch in micro]
        assert len({len(micro) for _, micro in parts}) == 1
        ids = sorted(i for batch in bins for i in batch.ids)
        supervised = sum(int(batch.counts()[1]) for batch in bins)
        yield (
            parts[0][0].index,
            ids,
            supervised,
            rows_digest(np.concatenate([batch.rows for batch in bins])),
        )


def test_the_same_steps_for_every_world_size_and_after_every_resume(packed_run):
    documents = documents_of(packed_run, "A")
    plan = plan_of(Training(packed_run.recipe, packed_run.run, PHASES["A"], 1), documents)
    alone = list(sequence(plan, documents, 1))
    assert [index for index, *_ in alone] == list(range(plan.num_steps))
    assert sorted(i for _, ids, *_ in alone for i in ids) == sorted(2 * packed_run.store.ids())
    assert [supervised for _, _, supervised, _ in alone] == plan.supervised_tokens.tolist()
    assert [digest for *_, digest in alone] == [
        rows_digest(plan.step(k).rows) for k in range(plan.num_steps)
    ]
    for world in (2, 4, 8):
        assert list(sequence(plan, documents, world)) == alone
    for first in range(plan.num_steps + 1):
        assert list(sequence(plan, documents, 2, first)) == alone[first:]


def test_a_failing_worker_fails_the_consumer_and_a_closed_stream_ends_it(packed_run):
    documents = documents_of(packed_run, "A")
    plan = plan_of(Training(packed_run.recipe, packed_run.run, PHASES["A"], 1), documents)
    stream = prefetched(plan, documents, 0, 1, 0)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name == "batches"]
    broken = documents_of(packed_run, "A")
    broken.traces = SimpleNamespace(trace=lambda row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(prefetched(plan, broken, 0, 1, 0))
