"""Scan and draw: which raw rows can be used, and which of them are.

scan    each input unit by one rank: parse and filter every row, note key and size of those that
        pass
draw    rank 0: duplicates out, the `data.rows` smallest keys in, cut into shards
"""

from collections import Counter

import numpy as np

from abscot.common.errors import UserError
from abscot.common.log import Progress, log
from abscot.data import sources
from abscot.data.decontaminate import Decontaminator
from abscot.data.formats import ADAPTERS, draw_key, read_example
from abscot.data.mpi import Ranks
from abscot.data.prepare_job import (
    Draw,
    Job,
    RejectedRow,
    new_file,
    rejected_lines,
    scanned,
    writing,
)
from abscot.data.sources import Rejected


def scan(job: Job, decontaminator: Decontaminator, ranks: Ranks) -> None:
    todo = ranks.first(
        lambda: [u for u in range(len(job.units)) if not job.unit_file(u, "npz").is_file()]
    )
    done = len(job.units) - len(todo)
    with (
        ranks.stage(Progress(len(job.units), "pieces", "scan", done)) as report,
        writing(job.work),
    ):
        for unit in todo[ranks.rank :: ranks.size]:
            _scan_unit(job, unit, decontaminator, report)


def _scan_unit(job: Job, number: int, decontaminator: Decontaminator, report) -> None:
    """unit_N.npz: row, key, characters of each row that may be used, lines read; unit_N.jsonl: the
    others.
    """
    unit, data = job.units[number], job.recipe.data
    found, lines = [], 0
    with new_file(job.unit_file(number, "jsonl"), "w") as rejected:
        for row, record in sources.read(unit, data, ADAPTERS[data.format].columns):
            report(0, rows=1)
            lines = row + 1
            if record is None:
                continue
            try:
                example = read_example(record, data, decontaminator)
                found.append((row, draw_key(job.recipe.seed, example.id), example.chars))
            except Rejected as error:
                RejectedRow.of(number, row, error).write(rejected)
    with new_file(job.unit_file(number, "npz"), "wb") as file:
        np.savez(file, found=np.array(found, np.int64).reshape(-1, 3), lines=np.int64(lines))
    report(1)


def draw_rows(job: Job) -> Draw:
    """The first row of each id, of these the data.rows smallest keys; drawn.jsonl: the others."""
    found = [scanned(job, u)["found"] for u in range(len(job.units))]
    unit = np.repeat(np.arange(len(found)), [len(f) for f in found])
    row, keys, chars = np.concatenate(found).T
    _, first = np.unique(keys, return_index=True)  # by increasing key
    drawn = first[: job.recipe.data.rows]
    with writing(job.work), new_file(job.work / "drawn.jsonl", "w") as rejected:
        unused = np.full(len(keys), "duplicate_id", object)
        unused[first], unused[drawn] = "not_drawn", ""
        for i in np.flatnonzero(unused):
            RejectedRow(int(unit[i]), int(row[i]), unused[i]).write(rejected)
    if not len(drawn):
        raise UserError(_nothing_left(job))
    drawn = np.sort(drawn)
    log(f"draw: {len(drawn):,} of {len(keys):,} rows that may be used")
    starts = _cut(chars[drawn], job.recipe.data.shard_rows, job.recipe.data.shard_chars)
    return Draw(unit[drawn], row[drawn], chars[drawn], starts)


def _cut(chars: np.ndarray, max_rows: int, max_chars: int) -> np.ndarray:
    """Where shards start, and the end: closed at max_rows rows, or when one more would pass
    max_chars.
    """
    starts, size = [0], 0
    for i, n in enumerate(chars.tolist()):
        if i > starts[-1] and (i - starts[-1] == max_rows or size + n > max_chars):
            starts.append(i)
            size = 0
        size += n
    return np.array([*starts, len(chars)])


def _nothing_left(job: Job) -> str:
    reasons, first = Counter(), None
    for line in rejected_lines(job, shards=0):
        reasons[line["reason"]] += 1
        first = first or line
    counts = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
    where = (
        f"; first: {first['file']}:{first['line']}: {first['reason']} {first['detail']}"
        if first
        else ""
    )
    return (
        f"data.source: {job.recipe.data.source}: no row is left with "
        f"data.format={job.recipe.data.format} ({counts or 'no rows'}){where}"
    )
