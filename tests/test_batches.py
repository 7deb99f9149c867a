"""Batches from a real shard store and trace set: tokens, segments, labels, order over ranks and
resumes.
"""

import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from abscot.common import files
from abscot.common.errors import UserError
from abscot.data.rows import Row
from abscot.data.shards import ShardStore, ShardWriter, manifest_of
from abscot.generation.trace_set import RANDOM, SCHEMA, TraceSet
from abscot.method.lineage import Training
from abscot.method.phases import PHASES, SEGMENT_C, SEGMENT_X, SEGMENT_Y, SEGMENT_Z
from abscot.method.vocab import AbstractVocab
from abscot.packing.batches import Documents, prefetched
from abscot.packing.phase_plan import plan_of
from abscot.packing.plan import rows_digest
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run

VOCAB = AbstractVocab(codebook_ids=(50, 51, 52, 53), begin_id=60, end_id=61)
SUFFIX, OPEN, CLOSE = [8, 9], [6], [7, 5]
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 64,
    "tie_word_embeddings": True,
}


def make_store(run: Run, rows: list[Row]) -> ShardStore:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")),
        chat_template="x",
    )
    chat = SimpleNamespace(
        tokenizer=tokenizer,
        turn_end_id=4,
        no_think_suffix=np.array(SUFFIX),
        think_open=np.array(OPEN),
        think_close=np.array(CLOSE),
    )
    with files.publish(run.shards) as directory:
        entries = []
        for index, part in enumerate(np.array_split(np.arange(len(rows)), 2)):  # two shards
            writer = ShardWriter(directory / f"shard_{index:05}.arrow")
            for row in part:
                writer.add(rows[row])
            entries.append(writer.close())
        files.write_json_atomic(
            directory / "manifest.json", manifest_of(directory, entries, {}, chat)
        )
    return ShardStore(run.shards)


def make_traces(
    run: Run, store, traces: dict[int, list[int]], changes: dict | None = None
) -> TraceSet:
    directory = run.traces("pi1_phaseA")
    ids = store.ids()
    columns = [list(traces), [ids[row] for row in traces], [0] * len(traces), list(traces.values())]
    meta = {
        "store": store.hash,
        "round": 1,
        "phase": "A",
        "model_fingerprint": RANDOM,
        **(changes or {}),
    }
    with files.publish(directory, meta) as temp:
        with pa.ipc.new_file(str(temp / "traces.arrow"), SCHEMA.remove(2)) as writer:
            writer.write_table(pa.table(columns, schema=SCHEMA).drop_columns("sample"))
        (temp / "stats.json").write_text("{}")
    return TraceSet.load(directory, store, 1, "A")


def random_row(generator: np.random.Generator, index: int) -> Row:
    prompt, cot, answer = (
        generator.integers(10, 40, generator.integers(1, n)).astype(np.int32) for n in (6, 20, 5)
    )
    return Row(
        f"row-{index}",
        np.append(prompt, np.int32(SUFFIX)),
        cot,
        np.array([len(cot)], np.int32),
        answer,
        "s",
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recipe, run, store of 60 rows, a trace of 1 to 6 tokens for each)."""
    generator = np.random.default_rng(0)
    recipe = load_recipe(
        None,
        [
            "train.capacity_tokens=64",
            "train.global_batch_examples=8",
            "train.epochs=2",
            "traces.m_max=6",
            "traces.m_min=1",
        ],
    )
    run = Run(tmp_path_factory.mktemp("run"))
    run.base.mkdir()
    (run.base / "config.json").write_text(json.dumps(SHAPE))
    store = make_store(run, [random_row(generator, index) for index in range(60)])
    traces = {
        row: generator.choice(VOCAB.codebook_ids, generator.integers(1, 7)).tolist()
        for row in range(60)
    }
    return SimpleNamespace(
        recipe=recipe, run=run, store=store, traces=make_traces(run, store, traces)
    )


def documents_of(made, phase: str, **train) -> Documents:
    traces = made.traces if PHASES[phase].trace_source == "model" else None
    config = replace(made.recipe.train, **train)
    return Documents(made.store, traces, PHASES[phase], VOCAB, config, made.recipe.traces)


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


def test_the_thinking_baseline_uses_the_thinking_template(made):
    row = made.store.row(3)
    batch = documents_of(made, "sft_cot").batch(np.array([3]))
    assert batch.input_ids[0].tolist() == [*row.prompt[:-2], *OPEN, *row.cot, *CLOSE, *row.answer]
    supervised = len(OPEN) + len(row.cot) + len(CLOSE) + len(row.answer)
    assert (
        batch.labels[0].tolist()
        == [-100] * (len(row.prompt) - 2) + batch.input_ids[0, -supervised:].tolist()
    )


def test_the_pause_baseline_has_unsupervised_pauses_of_full_length(made):
    row = made.store.row(3)
    batch = documents_of(made, "pause").batch(np.array([3]))
    assert batch.input_ids[0].tolist() == [*row.prompt, 60, *[50] * 6, 61, *row.answer]
    assert (batch.labels[0] != -100).sum() == len(row.answer)


@given(
    st.sampled_from(list(PHASES)),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 59), min_size=1, max_size=6, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_lengths_foretell_what_batches_hold(made, phase, begin, end, rows):
    documents = documents_of(made, phase, supervise_begin=begin, supervise_end=end)
    lengths, batch = documents.lengths(), documents.batch(np.array(rows))
    assert batch.input_ids.shape[1] == lengths["total"][rows].sum()
    assert (batch.labels != -100).sum() == lengths["supervised"][rows].sum()
    for name, segment in (("X", SEGMENT_X), ("C", SEGMENT_C), ("Z", SEGMENT_Z), ("Y", SEGMENT_Y)):
        assert (batch.segment_id == segment).sum() == lengths[name][rows].sum()
    first = batch.position_ids[0] == 0
    assert first.sum() == len(rows) and (batch.labels[0][first] == -100).all()


def test_pairs_are_those_of_the_mask(made):
    from abscot.method.masks import dense_mask

    for phase in PHASES:
        documents = documents_of(made, phase)
        batch = documents.batch(np.arange(5))
        mask = dense_mask(batch.document_id, batch.segment_id, PHASES[phase].hidden)
        assert mask.sum() == documents.lengths()["pairs"][:5].sum()


def test_an_idle_rank_gets_a_document_without_labels(made):
    for phase in PHASES:
        batch = documents_of(made, phase).batch(None)
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


def test_the_same_steps_for_every_world_size_and_after_every_resume(made):
    documents = documents_of(made, "A")
    plan = plan_of(Training(made.recipe, made.run, PHASES["A"], 1), documents)
    alone = list(sequence(plan, documents, 1))
    assert [index for index, *_ in alone] == list(range(plan.num_steps))
    assert sorted(i for _, ids, *_ in alone for i in ids) == sorted(2 * made.store.ids())
    assert [supervised for _, _, supervised, _ in alone] == plan.supervised_tokens.tolist()
    assert [digest for *_, digest in alone] == [
        rows_digest(plan.step(k).rows) for k in range(plan.num_steps)
    ]
    for world in (2, 4, 8):
        assert list(sequence(plan, documents, world)) == alone
    for first in range(plan.num_steps + 1):
        assert list(sequence(plan, documents, 2, first)) == alone[first:]


def test_the_plan_file_is_read_by_the_next_run(made):
    first = plan_of(
        Training(made.recipe, made.run, PHASES["sft_cot"], 1), documents_of(made, "sft_cot")
    )
    again = plan_of(
        Training(made.recipe, made.run, PHASES["sft_cot"], 1), documents_of(made, "sft_cot")
    )
    assert first.hash == again.hash and made.run.plan_of("sft_cot").is_file()


def test_a_failing_worker_fails_the_consumer_and_a_closed_stream_ends_it(made):
    documents = documents_of(made, "A")
    plan = plan_of(Training(made.recipe, made.run, PHASES["A"], 1), documents)
    stream = prefetched(plan, documents, 0, 1, 0)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name == "batches"]
    broken = documents_of(made, "A")
    broken.traces = SimpleNamespace(trace=lambda row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(prefetched(plan, broken, 0, 1, 0))


def test_traces_that_are_not_the_phases_are_refused(made, tmp_path):
    run = Run(tmp_path)
    store = make_store(run, [made.store.row(row) for row in range(4)])

    def plan(traces):
        documents = Documents(
            store, traces, PHASES["A"], VOCAB, made.recipe.train, made.recipe.traces
        )
        return plan_of(Training(made.recipe, run, PHASES["A"], 1), documents)

    with pytest.raises(UserError, match="1 rows of the phase have no trace"):
        plan(make_traces(run, store, {0: [50], 1: [50], 3: [50]}))
    with pytest.raises(UserError, match="traces of model deadbeef, expected random"):
        plan(
            make_traces(
                run, store, {row: [50] for row in range(4)}, {"model_fingerprint": "deadbeef"}
            )
        )
    for wrong in ({"round": 2}, {"phase": "B"}, {"store": "another"}):
        with pytest.raises(UserError, match=f"traces of {next(iter(wrong))}"):
            make_traces(run, store, {row: [50] for row in range(4)}, wrong)
