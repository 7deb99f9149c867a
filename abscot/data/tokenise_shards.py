"""Tokenise: each shard by one rank, its rows in the order of the input; then the drawn rows into
the store.
"""

import contextlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from abscot.common.errors import UserError
from abscot.common.log import Progress
from abscot.data import sources
from abscot.data.chat import ChatTokenizer
from abscot.data.decontaminate import Decontaminator
from abscot.data.draw import Drawing, Pass
from abscot.data.formats import ADAPTERS, Example, draw_key, read_example
from abscot.data.mpi import Ranks
from abscot.data.prepare_job import (
    Job,
    RejectedRow,
    ShardNote,
    checksums,
    finished,
    new_file,
    place,
    writing,
)
from abscot.data.rejected import Rejected
from abscot.data.rows import Row, fit, tokenise
from abscot.data.shards import ShardWriter

BATCH_CHARS = 4_000_000  # of text tokenised together: bounds the memory of a rank
Item = tuple[int, int, int, Example]  # unit, row, place in the order of the draw, example


def tokenise_shards(job: Job, made: Pass, chat: ChatTokenizer, ranks: Ranks) -> None:
    checked = ranks.everyone(
        [
            shard
            for shard in made.shards[ranks.rank :: ranks.size]
            if not finished(ShardNote, job.file("shard", shard, "json"))
        ]
    )
    todo = sorted(shard for part in checked for shard in part)
    rows = {shard: made.rows_of(shard) for shard in made.shards}
    done = len(made.row) - sum(len(made.row[rows[shard]]) for shard in todo)
    mine = _share(todo, [int(made.chars[rows[shard]].sum()) for shard in todo], ranks)
    progress = Progress(len(made.row), "rows", "tokenise", done)
    with ranks.stage(progress) as report, writing(job.work):
        stream = _examples(job, made, mine)
        for shard in mine:
            count = len(made.row[rows[shard]])
            _tokenise_shard(job, shard, itertools.islice(stream, count), chat, report)


def _share(todo: list[int], chars: list[int], ranks: Ranks) -> list[int]:
    """This rank's neighbouring shards, about as many characters as the others': it never reads
    back.
    """
    middle = np.cumsum(chars) - np.array(chars) / 2
    owner = (middle * ranks.size / max(sum(chars), 1)).astype(int)
    return [s for s, rank in zip(todo, owner, strict=True) if rank == ranks.rank]


def _examples(job: Job, made: Pass, shards: list[int]) -> Iterator[Item]:
    """The shards' rows, in order; each unit is read once."""
    data = job.recipe.data
    index = np.arange(len(made.row))
    picked = np.concatenate([np.zeros(0, int), *(index[made.rows_of(s)] for s in shards)])
    nothing = Decontaminator([], data.max_overlap)  # these rows have passed
    for number in np.unique(made.unit[picked]).tolist():
        unit, here = job.units[number], picked[made.unit[picked] == number]
        wanted, count = made.row[here], 0
        try:
            for row, record in sources.read(unit, data, ADAPTERS[data.format].columns, wanted):
                example = read_example(record or {}, data, nothing)
                if draw_key(job.recipe.seed, example.id) != made.key[here[count]]:
                    break
                yield number, row, int(made.place[here[count]]), example
                count += 1
        except Rejected:
            count = -1
        if count != len(wanted):
            raise UserError(changed(place(unit)))


def changed(file: str) -> str:
    return f"{file}: changed while it was being read; run the same command again"


def _tokenise_shard(job: Job, shard: int, examples, chat: ChatTokenizer, report) -> None:
    limit, policy = job.settings["limit_tokens"], job.recipe.data.long_rows
    kept, truncated, passed_over = [], [], []
    writer = ShardWriter(job.file("shard", shard, "arrow"))
    with new_file(job.file("shard", shard, "jsonl"), "w") as rejected:
        for batch in _batches(examples):
            tokenised = tokenise([example for *_, example in batch], chat)
            for (unit, row, at, _), whole in zip(batch, tokenised, strict=True):
                try:
                    fitted = fit(whole, limit, policy)
                except Rejected as error:
                    RejectedRow.of(unit, row, error).write(rejected)
                    passed_over.append(at)
                    continue
                writer.add(fitted)
                kept.append(at)
                if len(fitted.cot) < len(whole.cot):
                    truncated.append(at)
            report(len(batch))
    writer.close()
    note = job.file("shard", shard, "json")
    sums = checksums(note, "arrow", "jsonl")
    ShardNote(sha256=sums, kept=kept, truncated=truncated, passed_over=passed_over).write(note)


def _batches(examples: Iterator[Item]) -> Iterator[list[Item]]:
    batch, chars = [], 0
    for item in examples:
        batch.append(item)
        chars += item[-1].chars
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def collect(job: Job, drawing: Drawing) -> tuple[list[dict], Counter, int]:
    """Fills the store with the drawn rows of all shards. Returns the manifest's entries, the rows
    of each source, and how many rows have a cut CoT.
    """
    if job.store.exists():
        shutil.rmtree(job.store)
    job.store.mkdir()
    entries, by_source, truncated = [], Counter(), 0
    for shard, note in drawing.notes():
        is_drawn = [at < drawing.end for at in note.kept]
        if not any(is_drawn):
            continue
        made = job.file("shard", shard, "arrow")
        final = job.store / f"shard_{len(entries):05d}.arrow"
        if all(is_drawn):
            _link(made, final)
            size, checksum = final.stat().st_size, note.sha256["arrow"]
            entry = {"file": final.name, "rows": len(is_drawn), "bytes": size, "sha256": checksum}
        else:
            entry = _copy_rows(made, final, is_drawn)
        entries.append(entry)
        by_source.update(_sources(final))
        truncated += sum(at < drawing.end for at in note.truncated)
    return entries, by_source, truncated


def _link(made: Path, final: Path) -> None:
    """One file under two names: a kill before the store is published costs no work."""
    with contextlib.suppress(OSError):  # a file system without links
        os.link(made, final)
        return
    shutil.copyfile(made, final)


def _copy_rows(made: Path, final: Path, wanted: list[bool]) -> dict:
    writer = ShardWriter(final)
    for row in itertools.compress(_rows(made), wanted):
        writer.add(row)
    return writer.close()


def _rows(shard: Path) -> Iterator[Row]:
    with pa.memory_map(str(shard)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            for at in range(len(batch)):
                row_id, *tokens, source_name = (column[at] for column in batch.columns)
                yield Row(
                    row_id.as_py(),
                    *(part.values.to_numpy() for part in tokens),
                    source_name.as_py(),
                )


def _sources(shard: Path) -> Iterator[str]:
    with pa.memory_map(str(shard)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            yield from reader.get_batch(index)["source"].to_pylist()
