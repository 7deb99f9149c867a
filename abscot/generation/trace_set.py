"""The published traces of one phase: memory-mapped, validated."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from abscot.common.errors import UserError
from abscot.common.files import read_done
from abscot.data.shards import ShardStore
from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import TraceConfig

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("sample", pa.int16()),
        ("trace", pa.list_(pa.int32())),
    ]
)
TRACES, STATS = "traces.arrow", "stats.json"
RANDOM = "random"  # model_fingerprint of traces that no model made


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array: the mapped one where the file holds it in one piece, as a published
    set's does.
    """
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


class TraceSet:
    """The published traces of one phase, memory-mapped."""

    def __init__(self, table: pa.Table, store_rows: int, meta: dict, stats: dict):
        self.meta, self.stats = meta, stats
        self._ids = table["id"]
        self.rows = _whole(table["row"]).to_numpy()
        column = _whole(table["trace"])
        self._offsets = column.offsets.to_numpy()
        self._values = column.values.to_numpy()
        self._entry = np.full(store_rows, -1, np.int64)
        self._entry[self.rows] = np.arange(len(self.rows))
        self._store_rows = store_rows

    @classmethod
    def load(
        cls, directory: Path, store: ShardStore, round_: int | None = None, phase: str | None = None
    ) -> "TraceSet":
        """Raises UserError where the set is unfinished, or of another store, round or phase."""
        meta = read_done(directory)
        for key, expected in (("store", store.hash), ("round", round_), ("phase", phase)):
            if expected is not None and meta[key] != expected:
                raise UserError(
                    f"{directory}: traces of {key} {meta[key]}, expected {expected}; delete it and "
                    "run launch/traces.py again"
                )
        with pa.memory_map(str(directory / TRACES)) as file:
            table = pa.ipc.open_file(file).read_all()
        return cls(table, len(store), meta, json.loads((directory / STATS).read_text()))

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
        self, ids: list[str], rows: np.ndarray, vocab: AbstractVocab, config: TraceConfig
    ) -> None:
        """Every row exactly once under its own id, only V_abs ids, lengths in range.

        Raises UserError for empty traces that the recipe does not allow, ValueError for anything
        else: a bug.
        """
        if not np.array_equal(self.rows, rows):
            raise ValueError(
                f"the traces cover {len(self.rows)} rows, not exactly the {len(rows)} of the phase"
            )
        if self._ids.to_pylist() != [ids[row] for row in rows]:
            raise ValueError("a trace stands under another row's id")
        values, lengths = self.flat()[0], self.all_lengths()
        if not np.isin(values, vocab.codebook_ids).all():
            raise ValueError("a trace holds tokens outside V_abs")
        if len(lengths) and not (config.m_min <= lengths.min() and lengths.max() <= config.m_max):
            raise ValueError(
                f"trace lengths {lengths.min()}..{lengths.max()} leave "
                f"{config.m_min}..{config.m_max}"
            )
        if (empty := int((lengths == 0).sum())) and not config.allow_empty:
            raise UserError(
                f"{empty} of {len(lengths)} traces are empty; set traces.m_min to 1 or more, or "
                "traces.allow_empty to true"
            )
