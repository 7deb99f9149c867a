"""Tokenise: each shard by one rank, its rows in the order of the input."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator

import numpy as np

from abscot.common.errors import UserError
from abscot.common.files import sha256_file, write_json_atomic
from abscot.common.log import Progress
from abscot.data import sources
from abscot.data.chat import ChatTokenizer
from abscot.data.decontaminate import Decontaminator
from abscot.data.formats import ADAPTERS, Example, read_example
from abscot.data.mpi import Ranks
from abscot.data.prepare_job import Draw, Job, RejectedRow, new_file, place, writing
from abscot.data.rows import fit, tokenise
from abscot.data.shards import ShardWriter
from abscot.data.sources import Rejected

BATCH_CHARS = 4_000_000  # of text tokenised together: bounds the memory of a rank


def tokenise_shards(job: Job, draw: Draw, chat: ChatTokenizer, ranks: Ranks) -> None:
    checked = ranks.everyone(
        [s for s in draw.shards[ranks.rank :: ranks.size] if not _is_whole(job, s)]
    )
    todo = sorted(s for part in checked for s in part)
    done = len(draw.row) - sum(map(draw.rows_of, todo))
    mine = _share(todo, [draw.chars_of(s) for s in todo], ranks)
    with (
        ranks.stage(Progress(len(draw.row), "rows", "tokenise", done)) as report,
        writing(job.work),
    ):
        stream = _examples(job, draw, mine)
        for shard in mine:
            _tokenise_shard(job, shard, itertools.islice(stream, draw.rows_of(shard)), chat, report)


def _is_whole(job: Job, shard: int) -> bool:
    """Is the shard there from an earlier run, with the checksum it was written with?"""
    note, file = job.shard_file(shard, "json"), job.shard_file(shard, "arrow")
    if not note.is_file() or not file.is_file():
        return False
    if sha256_file(file) == json.loads(note.read_text())["entry"]["sha256"]:
        return True
    print(f"{file}: checksum is wrong; making it again", flush=True)
    return False


def _share(todo: list[int], chars: list[int], ranks: Ranks) -> list[int]:
    """This rank's neighbouring shards, about as many characters as the others': it never reads
    back.
    """
    middle = np.cumsum(chars) - np.array(chars) / 2
    owner = (middle * ranks.size / max(sum(chars), 1)).astype(int)
    return [s for s, rank in zip(todo, owner, strict=True) if rank == ranks.rank]


def _examples(job: Job, draw: Draw, shards: list[int]) -> Iterator[tuple[int, int, Example]]:
    """(unit, row, example) of the shards' drawn rows, in order; each unit is read once."""
    data = job.recipe.data
    picked = np.concatenate(
        [np.arange(draw.starts[s], draw.starts[s + 1]) for s in shards] or [np.zeros(0, int)]
    )
    nothing = Decontaminator([], data.max_overlap)  # these rows have passed
    for number in np.unique(draw.unit[picked]).tolist():
        unit, wanted = job.units[number], draw.row[picked[draw.unit[picked] == number]]
        count = 0
        try:
            for row, record in sources.read(unit, data, ADAPTERS[data.format].columns, wanted):
                yield number, row, read_example(record, data, nothing)
                count += 1
        except Rejected:
            count = -1
        if count != len(wanted):
            raise UserError(
                f"{place(unit)}: changed while it was being read; run the same command again"
            )


def _tokenise_shard(job: Job, shard: int, examples, chat: ChatTokenizer, report) -> None:
    """shard_N.arrow, then its note: manifest entry and counts; shard_N.jsonl: rows that are too
    long.
    """
    limit, policy = job.settings["limit_tokens"], job.recipe.data.long_rows
    by_source, truncated = Counter(), 0
    writer = ShardWriter(job.shard_file(shard, "arrow"))
    with new_file(job.shard_file(shard, "jsonl"), "w") as rejected:
        for batch in _batches(examples):
            tokenised = tokenise([example for _, _, example in batch], chat)
            for (unit, row, example), whole in zip(batch, tokenised, strict=True):
                try:
                    fitted = fit(whole, limit, policy)
                except Rejected as error:
                    RejectedRow.of(unit, row, error).write(rejected)
                    continue
                writer.add(fitted)
                by_source[example.source] += 1
                truncated += len(fitted.cot) < len(whole.cot)
            report(len(batch))
    note = {"entry": writer.close(), "sources": by_source, "truncated": truncated}
    write_json_atomic(job.shard_file(shard, "json"), note)


def _batches(examples) -> Iterator[list]:
    batch, chars = [], 0
    for item in examples:
        batch.append(item)
        chars += item[2].chars
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
