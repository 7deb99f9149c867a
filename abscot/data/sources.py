"""Raw rows, one at a time, from JSONL (.gz, .zst), Parquet, Arrow or a hub dataset, each with its
place.
"""

import functools
import glob
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abscot.common.errors import UserError
from abscot.recipe.load import local_path
from abscot.recipe.schema import DataConfig

OPTIONAL_COLUMNS = ("id", "dataset_source", "source")
CHUNK_BYTES = 64 * 2**20  # of a plain JSONL file read by one rank at a time
SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "packed",
    ".json.gz": "packed",
    ".jsonl.zst": "packed",
    ".json.zst": "packed",
    ".parquet": "parquet",
    ".arrow": "arrow",
}


class Rejected(Exception):
    """A row that is not used: `reason` is counted, `detail` helps to find out why. tokens: its
    length, where it was tokenised.
    """

    def __init__(self, reason: str, detail: str = "", tokens: int | None = None):
        super().__init__(reason, detail, tokens)
        self.reason, self.detail, self.tokens = reason, detail, tokens


@dataclass(frozen=True)
class Unit:
    """A piece of the input that one rank reads alone, front to back. Units do not depend on the
    ranks.

    jsonl: the lines that begin in bytes [start, end); packed: a whole compressed file; parquet: row
    group `start`; arrow: a whole file; hub: part `start` of `end` of the streamed dataset.
    """

    file: str
    kind: str
    start: int = 0
    end: int = 0


def find(config: DataConfig) -> list[Unit]:
    """The units of `data.source`, in order: a file, a glob (sorted), or a hub id.

    Raises UserError where nothing is there, a file is empty, unreadable or of no known kind.
    """
    if local_path(config.source) is None:
        parts = _hub_dataset(config).num_shards
        return [Unit(config.source, "hub", part, parts) for part in range(parts)]
    files = sorted(glob.glob(str(Path(config.source).expanduser()), recursive=True))
    if not files:
        raise UserError(
            f"data.source: {config.source}: no such file; give a file, a glob, or a hub id "
            "(owner/name)"
        )
    return [unit for file in files for unit in _units_of(file)]


def _units_of(file: str) -> list[Unit]:
    kind = next((kind for suffix, kind in SUFFIXES.items() if file.endswith(suffix)), None)
    if kind is None:
        raise UserError(f"data.source: {file}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    try:
        with open(file, "rb") as opened:
            size = opened.seek(0, io.SEEK_END)
    except OSError as error:
        raise UserError(f"data.source: {file}: cannot be read: {error.strerror}") from None
    if size == 0:
        raise UserError(f"data.source: {file}: empty file")
    if kind == "jsonl":
        return [
            Unit(file, kind, at, min(at + CHUNK_BYTES, size)) for at in range(0, size, CHUNK_BYTES)
        ]
    if kind == "parquet":
        return [Unit(file, kind, group) for group in range(_parquet(file).num_row_groups)]
    return [Unit(file, kind)]


def read(
    unit: Unit, config: DataConfig, columns: tuple[str, ...], wanted: np.ndarray | None = None
) -> Iterator[tuple[int, dict | Rejected | None]]:
    """(row, record) of a unit in order; `row` counts from 0 inside the unit, for JSONL it counts
    lines.

    wanted: increasing row numbers; the other rows are passed over unparsed. A row that cannot be
    parsed comes as Rejected, a blank line as None. Raises UserError for a damaged file, and for one
    that lacks a column.
    """
    if unit.kind in ("jsonl", "packed"):
        return _read_lines(unit, config.max_row_bytes, wanted)
    if unit.kind == "hub":
        return _read_hub(unit, config, wanted)
    return _read_table(unit, columns, wanted)


# JSONL


def _read_lines(unit: Unit, max_row_bytes: int, wanted: np.ndarray | None):
    rows = None if wanted is None else set(wanted.tolist())
    last = None if wanted is None else int(wanted[-1])
    for row, line in enumerate(_lines(unit, max_row_bytes)):
        if rows is None or row in rows:
            yield row, _parse(line, max_row_bytes)
        if row == last:
            return


def _lines(unit: Unit, max_row_bytes: int) -> Iterator[bytes]:
    """Lines of a unit, each cut after max_row_bytes + 1 bytes so that no file can fill
    the memory.
    """
    number = 0
    try:
        with _open(unit) as file:
            if unit.start:  # the line that began before `start` belongs to the unit before
                file.seek(unit.start - 1)
                _skip_line(file)
            while unit.kind == "packed" or file.tell() < unit.end:
                line = file.readline(max_row_bytes + 1)
                if not line:
                    return
                number += 1
                if len(line) > max_row_bytes and not line.endswith(b"\n"):
                    _skip_line(file)
                yield line
    except (OSError, EOFError) as error:
        raise UserError(
            f"{unit.file}: damaged or cut off after line {number} ({error}); fetch the file again"
        ) from None


def _open(unit: Unit):
    if unit.kind == "jsonl":
        return open(unit.file, "rb")
    import pyarrow as pa

    compression = "gzip" if unit.file.endswith(".gz") else "zstd"
    return io.BufferedReader(pa.input_stream(unit.file, compression=compression), 2**20)


def _skip_line(file) -> None:
    while (piece := file.readline(2**20)) and not piece.endswith(b"\n"):
        pass


def _parse(line: bytes, max_row_bytes: int) -> dict | Rejected | None:
    """The record of one line; None for a blank line, which is no row."""
    if len(line) > max_row_bytes:
        return Rejected("row_too_big", f"more than data.max_row_bytes={max_row_bytes}")
    if line.isspace():
        return None
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejected("invalid_utf8", f"byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return Rejected("broken_json", str(error))
    if not isinstance(record, dict):
        return Rejected("broken_json", f"expected an object, found {type(record).__name__}")
    return record


# Parquet and Arrow


def _parquet(file: str):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file: {_first_line(error)}") from None


def _arrow_batches(file: str):
    """(schema, record batches) of an IPC file, or of an IPC stream, which is what `datasets`
    writes.
    """
    import pyarrow as pa

    source = pa.memory_map(file)
    try:
        reader = pa.ipc.open_file(source)
        return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
        reader = pa.ipc.open_stream(source)
        return reader.schema, iter(reader)


def _read_table(unit: Unit, columns: tuple[str, ...], wanted: np.ndarray | None):
    import pyarrow as pa

    try:
        if unit.kind == "parquet":
            file = _parquet(unit.file)
            schema, batches = file.schema_arrow, None
        else:
            schema, batches = _arrow_batches(unit.file)
        missing = [name for name in columns if name not in schema.names]
        if missing:
            raise UserError(
                f"{unit.file}: no column {', '.join(missing)}; it has {', '.join(schema.names)}; "
                "set data.format to what fits"
            )
        used = [name for name in schema.names if name in (*columns, *OPTIONAL_COLUMNS)]
        if batches is None:
            batches = file.iter_batches(batch_size=256, row_groups=[unit.start], columns=used)
        batches = (batch.select(used) for batch in batches)
        yield from _rows_of(batches, wanted)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{unit.file}: damaged: {_first_line(error)}; fetch the file again"
        ) from None


def _rows_of(batches, wanted: np.ndarray | None):
    first = 0
    for batch in batches:
        rows = np.arange(first, first + len(batch))
        if wanted is not None:
            rows = wanted[
                np.searchsorted(wanted, first) : np.searchsorted(wanted, first + len(batch))
            ]
        for at in range(0, len(rows), 256):
            piece = rows[at : at + 256]
            yield from zip(piece.tolist(), batch.take(piece - first).to_pylist(), strict=True)
        first += len(batch)
        if wanted is not None and first > wanted[-1]:
            return


# Hub


def _hub_dataset(config: DataConfig):
    """The streamed dataset: no copy of it is kept. Raises UserError where the hub does
    not give it.
    """
    try:
        return _load_hub(config.source, config.subset, config.split, config.revision)
    except (OSError, ValueError) as error:  # datasets' own errors are subclasses of these
        raise UserError(
            f"data.source: {config.source}: the hub does not give it: {_first_line(error)}"
        ) from None


@functools.lru_cache(maxsize=1)  # asking the hub for its list of files takes seconds
def _load_hub(name: str, subset: str | None, split: str, revision: str | None):
    import datasets

    return datasets.load_dataset(name, subset, split=split, revision=revision, streaming=True)


def _read_hub(unit: Unit, config: DataConfig, wanted: np.ndarray | None):
    rows = None if wanted is None else set(wanted.tolist())
    last = None if wanted is None else int(wanted[-1])
    try:
        for row, record in enumerate(
            _hub_dataset(config).shard(num_shards=unit.end, index=unit.start)
        ):
            if rows is None or row in rows:
                yield row, record
            if row == last:
                return
    except (
        Exception
    ) as error:  # whatever the hub's client raises, nothing is wrong with what came before
        raise UserError(
            f"data.source: {config.source}: part {unit.start} broke off ({_first_line(error)}); "
            "run it again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
