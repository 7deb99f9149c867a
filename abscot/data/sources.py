"""Raw rows, one at a time, from JSONL (.gz, .zst), Parquet, Arrow or a hub dataset, each with its
place.
"""

import codecs
import functools
import io
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from abscot.common.errors import UserError
from abscot.common.paths import matching
from abscot.data import tables
from abscot.data.rejected import Rejected
from abscot.recipe.load import local_path
from abscot.recipe.schema import DataConfig

OPTIONAL_COLUMNS = ("id", "dataset_source", "source", "answer")
CHUNK_BYTES = 64 * 2**20  # of a plain JSONL file read by one rank at a time
USELESS_LINES = 20_000  # in a row: blank, no JSON, or without any column of the format
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

    Raises UserError where nothing is there, a file is empty, unreadable, no regular file or of no
    known kind.
    """
    if local_path(config.source) is None:
        parts = _hub_dataset(config).num_shards
        return [Unit(config.source, "hub", part, parts) for part in range(parts)]
    files = matching(config.source)
    if not files:
        raise UserError(
            f"data.source: {_shown(config.source)}: no such file; give a file, a glob, or a hub "
            "id (owner/name)"
        )
    return [unit for file in files for unit in _units_of(str(file))]


def _shown(source: str) -> str:
    return source if source.isprintable() and len(source) < 300 else f"{ascii(source[:300])} .."


def _units_of(file: str) -> list[Unit]:
    if not file.isprintable():
        raise UserError(f"data.source: {file!r}: its name cannot be printed; rename it")
    size = _size_bytes(file)
    kind = next((kind for suffix, kind in SUFFIXES.items() if file.lower().endswith(suffix)), None)
    if kind is None:
        raise UserError(f"data.source: {file}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    if size == 0:
        raise UserError(f"data.source: {file}: empty file")
    if kind == "jsonl":
        return [
            Unit(file, kind, at, min(at + CHUNK_BYTES, size)) for at in range(0, size, CHUNK_BYTES)
        ]
    if kind == "parquet":
        return [Unit(file, kind, group) for group in range(tables.row_groups(file))]
    return [Unit(file, kind)]


def _size_bytes(file: str) -> int:
    """Raises UserError for what is no regular file (opening a pipe would wait for its writer)."""
    try:
        status = os.stat(file)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(
                f"data.source: {file}: a directory; give a file or a glob, e.g. {file}/*.jsonl"
            )
        if not stat.S_ISREG(status.st_mode):
            raise UserError(
                f"data.source: {file}: not a regular file (a pipe, a socket or a device); copy the "
                "rows into a file"
            )
        with open(file, "rb"):
            return status.st_size
    except OSError as error:
        raise UserError(f"data.source: {file}: cannot be read: {error.strerror}") from None


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
        return _read_lines(unit, config.max_row_bytes, columns, wanted)
    if unit.kind == "hub":
        return _read_hub(unit, config, wanted)
    group = unit.start if unit.kind == "parquet" else None
    return tables.read(unit.file, group, columns, OPTIONAL_COLUMNS, config.max_row_bytes, wanted)


# JSONL


def _read_lines(
    unit: Unit, max_row_bytes: int, columns: tuple[str, ...], wanted: np.ndarray | None
):
    rows = None if wanted is None else set(wanted.tolist())
    last, useful = None if wanted is None else int(wanted[-1]), -1
    for row, line in enumerate(_lines(unit, max_row_bytes)):
        if rows is None or row in rows:
            record = _parse(line, max_row_bytes)
            if isinstance(record, dict) and any(name in record for name in columns or record):
                useful = row
            if rows is None and row - useful > USELESS_LINES:
                raise UserError(
                    f"{unit.file}: {USELESS_LINES:,} lines one after the other are no JSON object "
                    f"with {' or '.join(columns)}; set data.format to what fits, or mend the file"
                )
            yield row, record
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
                _skip_line(file, unit)
            while unit.kind == "packed" or file.tell() < unit.end:
                line = file.readline(max_row_bytes + 1)
                if not line:
                    return
                number += 1
                if len(line) > max_row_bytes and not line.endswith(b"\n"):
                    _skip_line(file, unit)
                if number == 1 and unit.start == 0:
                    line = line.removeprefix(codecs.BOM_UTF8) or b"\n"
                yield line
    except (OSError, EOFError) as error:
        raise UserError(
            f"{unit.file}: damaged or cut off after line {number} ({tables.first_line(error)}); "
            "fetch the file again"
        ) from None


def _open(unit: Unit):
    if unit.kind == "jsonl":
        return open(unit.file, "rb")
    import pyarrow as pa

    compression = "gzip" if unit.file.lower().endswith(".gz") else "zstd"
    stream = pa.input_stream(unit.file, compression=compression)
    return io.BufferedReader(_Unpacked(unit.file, stream), 2**20)


class _Unpacked(io.RawIOBase):
    """What a compressed file unpacks to, as far as that is believable."""

    def __init__(self, file: str, stream):
        self._file, self._stream = file, stream
        self._unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._unpacked += len(data)
        tables.check_unpacked(self._file, self._unpacked)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _skip_line(file, unit: Unit) -> None:
    """To the end of this line, as far as that lies in the unit."""
    while (piece := file.readline(2**20)) and not piece.endswith(b"\n"):
        if unit.kind == "jsonl" and file.tell() >= unit.end:
            return


def _parse(line: bytes, max_row_bytes: int) -> dict | Rejected | None:
    """The record of one line; None for a blank line, which is no row."""
    if len(line) > max_row_bytes:
        return Rejected("row_too_big", f"more than data.max_row_bytes={max_row_bytes}")
    if line.isspace():
        return None
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return Rejected("invalid_utf8", f"byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return Rejected("broken_json", str(error))
    except Rejected as error:
        return error
    if not isinstance(record, dict):
        return Rejected("broken_json", f"expected an object, found {type(record).__name__}")
    return record


def _object(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):  # which of the two is meant, nobody knows
        seen = set()
        raise Rejected("duplicate_key", next(k for k, _ in pairs if k in seen or seen.add(k)))
    return record


# Hub


def _hub_dataset(config: DataConfig):
    """The streamed dataset: no copy of it is kept. Raises UserError where the hub does
    not give it.
    """
    try:
        return _load_hub(config.source, config.subset, config.split, config.revision)
    except (OSError, ValueError) as error:  # datasets' own errors are subclasses of these
        raise UserError(
            f"data.source: {config.source}: the hub does not give it: {tables.first_line(error)}"
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
            f"data.source: {config.source}: part {unit.start} broke off "
            f"({tables.first_line(error)}); run it again"
        ) from error
