"""Draw: which of the rows that may be used are.

The rows are looked at in the order of their keys, a hash of (seed, id), until data.rows of them are
found that fit: so the draw is uniform, and the same on any number of ranks, after any kill. How
long a row is only its tokens tell. So the rows are tokenised in passes, each over the next rows in
that order: the first has as many rows as are wanted, the others as many as should bring what is
missing. What a pass finds beyond that is left out again.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.data.prepare_job import (
    Job,
    RejectedRow,
    ShardNote,
    rejected_lines,
    rejected_rows,
    scanned,
)

GROWTH = 4  # a pass has at most so many times the rows of all before it
BLOCK_ROWS = 100_000  # of the rows that are not drawn, as Python objects at once


@dataclass(frozen=True)
class Pass:
    """Rows to tokenise, in the order of the input (np.int64 each); shard first_shard + s is
    [starts[s], starts[s + 1]). place: in the order of the draw.
    """

    unit: np.ndarray
    row: np.ndarray  # inside the unit
    key: np.ndarray
    chars: np.ndarray
    place: np.ndarray
    starts: np.ndarray
    first_shard: int

    @property
    def shards(self) -> range:
        return range(self.first_shard, self.first_shard + len(self.starts) - 1)

    def rows_of(self, shard: int) -> slice:
        at = shard - self.first_shard
        return slice(int(self.starts[at]), int(self.starts[at + 1]))


class Drawing:
    """The draw of a job, on rank 0. It follows from the files of the job alone."""

    def __init__(self, job: Job):
        self.job = job
        self.passes: list[Pass] = []

    @functools.cached_property
    def _usable(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, first, others): unit, row, key, characters of each row that may be used, int64 [4,
        rows]; the first row of each id, by increasing key; all others.
        """
        found = [scanned(self.job, unit) for unit in range(len(self.job.units))]
        unit = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
        rows = np.vstack([unit, np.concatenate([np.zeros((0, 3), np.int64), *found]).T])
        _, first = np.unique(rows[2], return_index=True)
        is_first = np.zeros(rows.shape[1], bool)
        is_first[first] = True
        return rows, first, np.flatnonzero(~is_first)

    @functools.cached_property
    def candidates(self) -> np.ndarray:
        """unit, row, key, characters of each different row, in the order of the draw, int64 [4,
        rows].
        """
        rows, first, _ = self._usable
        return rows[:, first]

    @property
    def tried(self) -> int:
        return sum(len(made.row) for made in self.passes)

    def notes(self) -> Iterator[tuple[int, ShardNote]]:
        """(shard, note) of all passes so far."""
        for made in self.passes:
            for shard in made.shards:
                yield shard, ShardNote.read(self.job.file("shard", shard, "json"))

    def next_pass(self) -> Pass | None:
        """None where enough rows are found, or all are looked at. Raises UserError where no row is
        left.
        """
        usable, wanted = self.candidates.shape[1], self.job.recipe.data.rows
        found, tried = sum(len(note.kept) for _, note in self.notes()), self.tried
        if tried == usable:
            if not found:
                raise UserError(self._nothing_left())
            return None
        count = usable if wanted is None else _pass_rows(wanted - found, found, tried)
        if count == 0:
            return None
        count = min(count, usable - tried)
        if tried:
            log(f"draw: {found:,} of {tried:,} rows fit, {wanted:,} are wanted; {count:,} more")
        else:
            log(f"draw: {count:,} of {usable:,} rows that may be used")
        self.passes.append(self._pass(tried, count))
        return self.passes[-1]

    def _pass(self, begin: int, count: int) -> Pass:
        rows, data = self.candidates[:, begin : begin + count], self.job.recipe.data
        order = np.lexsort((rows[1], rows[0]))
        unit, row, key, chars = rows[:, order]
        starts = _cut(chars, data.shard_rows, data.shard_chars)
        shards = sum(len(made.shards) for made in self.passes)
        return Pass(unit, row, key, chars, begin + order, starts, shards)

    @functools.cached_property
    def end(self) -> int:
        """The rows in places below are drawn, or passed over because they cannot be trained on."""
        wanted = self.job.recipe.data.rows
        kept = np.sort(np.concatenate([np.array(note.kept, np.int64) for _, note in self.notes()]))
        if wanted is not None and len(kept) >= wanted:
            return int(kept[wanted - 1]) + 1
        if wanted is not None:
            log(
                f"warning: data.rows={wanted}, but the source has only {len(kept):,} rows that can "
                f"be trained on, of {self.candidates.shape[1]:,} that may be used"
            )
        return self.candidates.shape[1]

    def rejected(self) -> Iterator[RejectedRow]:
        """Every row that is not used, and why."""
        yield from self._rejected_by_scan()
        rows, first, others = self._usable
        for reason, unused in (("duplicate_id", others), ("not_drawn", np.sort(first[self.end :]))):
            for block in range(0, len(unused), BLOCK_ROWS):
                for unit, row in rows[:2, unused[block : block + BLOCK_ROWS]].T.tolist():
                    yield RejectedRow(unit, row, reason)
        for shard, note in self.notes():
            passed_over = rejected_rows(self.job.file("shard", shard, "jsonl"))
            for at, row in zip(note.passed_over, passed_over, strict=True):
                if at < self.end:
                    yield row

    def _rejected_by_scan(self) -> Iterator[RejectedRow]:
        for unit in range(len(self.job.units)):
            yield from rejected_rows(self.job.file("unit", unit, "jsonl"))

    def _nothing_left(self) -> str:
        self.end = self.candidates.shape[1]
        reasons, first = Counter(), None
        for line in rejected_lines(self.job, self.rejected()):
            reasons[line.reason] += 1
            first = first or line
        counts = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        where = (
            f"; first: {first.file}:{first.line}: {first.reason} {first.detail}" if first else ""
        )
        data = self.job.recipe.data
        return (
            f"data.source: {data.source}: no row is left with "
            f"data.format={data.format} ({counts or 'no rows'}){where}"
        )


def _pass_rows(missing: int, found: int, tried: int) -> int:
    """How many rows to look at next, so that they hold the missing ones nearly surely."""
    if missing <= 0:
        return 0
    if not tried:
        return missing
    share = (found + 0.5) / (tried + 1)  # of rows that fit
    enough = missing + 3 * math.sqrt(missing * (1 - share)) + 9
    return min(math.ceil(enough / share), GROWTH * tried + 100)


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
