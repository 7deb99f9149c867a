"""The published traces of one phase: memory-mapped, validated."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from abscot.common.errors import UserError
from abscot.common.files import DONE, publish, read_done, write_json_atomic
from abscot.data.shards import ShardStore
from abscot.generation.trace_records import (
    SET_SCHEMA,
    STATS,
    TRACES,
    SetMeta,
    TraceStats,
    mend,
    read_table,
    rows_sha256,
)
from abscot.method.vocab import AbstractVocab


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array: the mapped one where the file holds it in one piece, as a published
    set's does.
    """
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


class TraceSet:
    """The published traces of one phase, memory-mapped."""

    def __init__(self, table: pa.Table, store_rows: int, meta: SetMeta | None = None):
        """Raises ValueError for rows that are not ascending numbers of the store."""
        self.meta = meta
        self._ids = table["id"]
        self.rows = _whole(table["row"]).to_numpy()
        if (np.diff(self.rows, prepend=-1) <= 0).any() or (self.rows >= store_rows).any():
            raise ValueError(f"its rows are not ascending numbers below {store_rows}")
        column = _whole(table["trace"])
        self._offsets = column.offsets.to_numpy()
        self._values = column.values.to_numpy()
        self._entry = np.full(store_rows, -1, np.int64)
        self._entry[self.rows] = np.arange(len(self.rows))
        self._store_rows = store_rows

    @classmethod
    def load(
        cls,
        directory: Path,
        store: ShardStore,
        round_: int | None = None,
        phase: str | None = None,
        vocab: AbstractVocab | None = None,
    ) -> "TraceSet":
        """Raises UserError where the set is unfinished, damaged, or of another store, round or
        phase. vocab: whose codebook its tokens must be of.
        """
        again = mend(directory)
        meta = meta_of(directory)
        for key, expected in (("store", store.hash), ("round", round_), ("phase", phase)):
            found = getattr(meta, key)
            if expected is not None and found != expected:
                raise UserError(
                    f"{directory}: traces of {key} {found}, expected {expected}; {again}"
                )
        table = read_table(directory / TRACES, SET_SCHEMA, again)
        try:
            traces = cls(table, len(store), meta)
            if rows_sha256(traces.rows) != meta.rows_sha256:
                raise ValueError(f"its {len(traces)} rows are not the {meta.rows} of {DONE}")
            traces.validate(store.ids(), traces.rows, vocab, meta.m_min, meta.m_max)
        except ValueError as error:
            raise UserError(f"{directory / TRACES}: {error}; {again}") from None
        return traces

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> np.ndarray:
        """int32 [rows of the shard store]: codebook tokens, 0 where the row has no trace in this
        set.
        """
        lengths = np.zeros(self._store_rows, np.int32)
        lengths[self.rows] = self.all_lengths()
        return lengths

    def all_lengths(self) -> np.ndarray:
        """int32 [len(self)]: codebook tokens of each trace, in the order of `rows`."""
        return np.diff(self._offsets).astype(np.int32)

    def trace(self, row: int) -> np.ndarray:
        """int32 codebook ids, without delimiters, of a row of the shard store. Raises KeyError if
        it has none.
        """
        entry = self._entry[row]
        if entry < 0:
            raise KeyError(f"row {row} has no trace in this set")
        return self._values[self._offsets[entry] : self._offsets[entry + 1]]

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """(values int32, offsets): trace i is values[offsets[i] : offsets[i + 1]]."""
        return self._values[self._offsets[0] : self._offsets[-1]], self._offsets - self._offsets[0]

    def validate(
        self,
        ids: Sequence[str],
        rows: np.ndarray,
        vocab: AbstractVocab | None,
        m_min: int,
        m_max: int,
    ) -> None:
        """Every row exactly once under its own id, only V_abs ids, lengths in range.

        Raises ValueError for anything else. vocab None: the tokens are not looked at.
        """
        if not np.array_equal(self.rows, rows):
            raise ValueError(
                f"the traces cover {len(self.rows)} rows, not exactly the {len(rows)} of the phase"
            )
        if self._ids.to_pylist() != [ids[row] for row in rows]:
            raise ValueError("a trace stands under another row's id")
        values, lengths = self.flat()[0], self.all_lengths()
        if vocab and not np.isin(values, vocab.codebook_ids).all():
            raise ValueError("a trace holds tokens outside V_abs")
        if len(lengths) and not (m_min <= lengths.min() and lengths.max() <= m_max):
            raise ValueError(
                f"trace lengths {lengths.min()}..{lengths.max()} leave {m_min}..{m_max}"
            )


def meta_of(directory: Path) -> SetMeta:
    """Raises UserError where the set is unfinished or its DONE is another's."""
    return SetMeta.of(read_done(directory), f"{directory / DONE}: meta", mend(directory))


def stats_of(directory: Path) -> TraceStats:
    """stats.json of a published set. Raises UserError where it is damaged."""
    return TraceStats.read(directory / STATS, mend(directory))


def publish_set(directory: Path, table: pa.Table, meta: SetMeta, stats: TraceStats) -> None:
    """table: of SET_SCHEMA, rows ascending. The set is there whole or not at all."""
    with publish(directory, meta.model_dump(exclude_none=True)) as temp:
        with pa.ipc.new_file(str(temp / TRACES), SET_SCHEMA) as writer:
            writer.write_table(table.combine_chunks())
        write_json_atomic(temp / STATS, stats.model_dump(exclude_none=True))
