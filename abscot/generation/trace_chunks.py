"""The chunks of a trace set that is being made: cut by what their rows cost, an Arrow file each,
there whole or not at all.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from abscot.common.disk import naming
from abscot.common.errors import UserError
from abscot.common.files import removed_on_error
from abscot.data.shards import ShardStore
from abscot.generation.trace_records import SCHEMA, Choices, ChunkMeta, read_table
from abscot.generation.trace_sources import Item, Made, Source
from abscot.method.lineage import Training
from abscot.method.schedules import GROUNDED, RANDOM
from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import TraceConfig

# Of a prompt, which cost as much as a decoded one: so it is behind a few hundred tokens (4B model,
# H100). Behind 20,000 it is 50, but there the prompt itself is most of the work.
DECODED_TOKENS = 2


def row_tokens(training: Training, store: ShardStore) -> np.ndarray:
    """int64 [rows of the store]: what a trace of each row costs at most, in tokens of a prompt: its
    prompt, the CoT where it is in sight, and what is decoded and scored behind it, best_of times.
    """
    lengths, rules, source = store.lengths(), training.recipe.traces, training.trace_source
    prompt = lengths["prompt"].astype(np.int64)
    if source == RANDOM:
        return np.full_like(prompt, rules.m_max)
    if source == GROUNDED:
        return prompt + lengths["cot"]
    behind = DECODED_TOKENS * rules.m_max
    if rules.best_of > 1:
        behind = behind + prompt + rules.m_max + lengths["answer"]
    seen = prompt + lengths["cot"] if training.traces_see_cot else prompt
    return seen + rules.best_of * behind


def cut(items: Iterable[Item], tokens: np.ndarray, most: int) -> Iterator[list[Item]]:
    """The items in order, as many in a chunk as cost `most` tokens; a dearer one stands alone.
    tokens: see row_tokens.
    """
    chunk, spent = [], 0
    for item in items:
        if chunk and spent + tokens[item.row] > most:
            yield chunk
            chunk, spent = [], 0
        chunk.append(item)
        spent += tokens[item.row]
    if chunk:
        yield chunk


def write_chunk(path: Path, items: list[Item], source: Source, made: Made) -> None:
    """Makes the traces of these items, and the file with what was counted on the way."""
    start, cut, source.choices = time.monotonic(), source.cut_prompts, Choices()
    traces = source.traces(items, made)
    meta = ChunkMeta(
        seconds=time.monotonic() - start,
        cut_prompts=source.cut_prompts - cut,
        choices=source.choices,
        grounded=source.grounded,
    )
    columns = [[i.row for i in items], [i.id for i in items], [i.sample for i in items], traces]
    table = pa.table(columns, schema=SCHEMA.with_metadata({"meta": meta.model_dump_json()}))
    temp = path.with_suffix(f".{os.getpid()}.tmp")
    with naming(path), removed_on_error(temp):
        with open(temp, "wb") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)


def read_chunk(
    path: Path, items: list[Item], vocab: AbstractVocab, rules: TraceConfig, again: str
) -> tuple[pa.Table, ChunkMeta]:
    """The traces of these items. again: what makes the file anew. Raises UserError for a file that
    does not hold them.
    """
    table = read_table(path, SCHEMA, again)
    try:
        meta = json.loads((table.schema.metadata or {}).get(b"meta", b"null"))
    except ValueError:
        meta = None
    meta = ChunkMeta.of(meta, f"{path}: meta", again)
    found = zip(*(table[name].to_pylist() for name in ("row", "id", "sample")), strict=True)
    if list(found) != [(i.row, i.id, i.sample) for i in items]:
        raise UserError(f"{path}: not the rows of this chunk; {again}")
    traces, allowed = table["trace"].to_pylist(), set(vocab.codebook_ids)
    for item, trace in zip(items, traces, strict=True):
        if not (rules.m_min <= len(trace) <= rules.m_max and allowed.issuperset(trace)):
            where = f"{path}: row {item.row}"
            raise UserError(f"{where}: a trace outside V_abs or [m_min, m_max]; {again}")
    return table, meta
