"""Rows of random tokens as a run has them: a shard store, and the trace set of a phase."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from abscot.common.draws import rng
from abscot.common.files import publish, write_json_atomic
from abscot.common.log import Progress
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
from abscot.generation.trace_set import publish_set
from abscot.method.lineage import Training
from abscot.method.schedules import RANDOM
from abscot.method.vocab import AbstractVocab
from abscot.recipe.run import Run

VOCAB = AbstractVocab(tuple(range(1000, 1064)), 1064, 1065)
M_MIN, M_MAX = 4, 128  # tokens of a trace
ROWS_PER_SHARD = 20_000


def write_store(run: Run, lengths: np.ndarray, vocab_size: int = 1000) -> ShardStore:
    """The run's shards. lengths: int [rows, 3], tokens of prompt, CoT and answer."""
    import tokenizers
    import transformers

    most = int(lengths.sum(1).max())
    tokens = rng("bench", "tokens").integers(0, vocab_size, most, dtype=np.int32)
    word_level = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_level, chat_template="-")
    none = np.zeros(0, np.int32)
    chat = SimpleNamespace(
        tokenizer=tokenizer, turn_end_id=0, no_think_suffix=none, think_open=none, think_close=none
    )
    rows, shards = np.arange(len(lengths)), -(-len(lengths) // ROWS_PER_SHARD)
    with publish(run.shards) as directory, Progress(len(rows), "rows", "write shards") as progress:
        entries = []
        for shard, part in enumerate(np.array_split(rows, shards)):
            writer = ShardWriter(directory / f"shard_{shard:05}.arrow")
            for row in part.tolist():
                ends = np.cumsum(lengths[row])
                prompt, cot, answer = np.split(tokens[: ends[-1]], ends[:-1])
                writer.add(
                    Row(f"row-{row}", prompt, cot, np.array([len(cot)], np.int32), answer, "bench")
                )
            entries.append(writer.close())
            progress.update(len(part))
        write_json_atomic(directory / "manifest.json", manifest_of(directory, entries, {}, chat))
    return ShardStore(run.shards)


def write_traces(training: Training, store: ShardStore) -> None:
    """The trace set that a training reads: random codes for all rows of the store."""
    lengths = rng("bench", "traces").integers(M_MIN, M_MAX + 1, len(store))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    column = pa.ListArray.from_arrays(
        offsets, rng("bench", "codes").integers(1000, 1064, offsets[-1], dtype=np.int32)
    )
    rows = np.arange(len(store))
    meta = SetMeta(
        version=VERSION,
        round=training.round,
        phase=training.phase.name,
        model_fingerprint=RANDOM,
        store=store.hash,
        rows=len(rows),
        rows_sha256=rows_sha256(rows),
        codebook_size=len(VOCAB.codebook_ids),
        m_min=M_MIN,
        m_max=M_MAX,
    )
    found = collapse.statistics(column.values.to_numpy(), offsets, VOCAB.codebook_ids, M_MAX, {}, 0)
    stats = TraceStats(source=RANDOM, cut_prompts=0, empty_traces=0, warnings=[], **found)
    table = pa.table([rows, store.ids(), column], schema=SET_SCHEMA)
    publish_set(training.traces, table, meta, stats)
