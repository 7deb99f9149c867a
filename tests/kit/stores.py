"""A shard store, traces and documents of random rows."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import transformers

from abscot.common import files
from abscot.data.rows import Row
from abscot.data.shards import ShardStore, ShardWriter, manifest_of
from abscot.generation import collapse
from abscot.generation.trace_records import (
    SET_SCHEMA,
    VERSION,
    SetMeta,
    TraceStats,
    rows_sha256,
)
from abscot.generation.trace_set import TraceSet, publish_set
from abscot.method.phases import PHASES
from abscot.method.schedules import RANDOM
from abscot.method.vocab import AbstractVocab
from abscot.packing.batches import Documents
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
    directory, ids = run.traces("pi1_phaseA"), store.ids()
    columns = [list(traces), [ids[row] for row in traces], list(traces.values())]
    lengths = [len(trace) for trace in traces.values()]
    meta = {
        "version": VERSION,
        "round": 1,
        "phase": "A",
        "model_fingerprint": RANDOM,
        "store": store.hash,
        "rows": len(traces),
        "rows_sha256": rows_sha256(np.array(list(traces))),
        "codebook_size": len(VOCAB.codebook_ids),
        "m_min": min(lengths),
        "m_max": max(lengths),
        **(changes or {}),
    }
    flat = np.concatenate(list(traces.values())), np.cumsum([0, *lengths])
    stats = collapse.statistics(*flat, VOCAB.codebook_ids, max(lengths), {}, 0)
    publish_set(
        directory,
        pa.table(columns, schema=SET_SCHEMA),
        SetMeta(**meta),
        TraceStats(source=RANDOM, cut_prompts=0, empty_traces=0, warnings=[], **stats),
    )
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
def packed_run(tmp_path_factory):
    """(recipe, run, store of 60 rows, a trace of 1 to 6 tokens for each)."""
    generator = np.random.default_rng(0)
    recipe = load_recipe(
        None,
        [
            "train.capacity_tokens=64",
            "train.global_batch_examples=8",
            "train.epochs=2",
            "train.channel_rows=0",
            "schedule=paper",
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
