"""Raw rows of Parquet and Arrow files: foreign bytes, so checked before they are read, and read in
bounded memory.
"""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from abscot.common.errors import UserError
from abscot.data.rejected import Rejected

BATCH_ROWS = 64  # of a Parquet file decoded together
# Of memory that decoding one batch may take: a page or a compressed buffer that unpacks to
# gigabytes fails instead.
BATCH_BYTES = 512 * 2**20
# A file that unpacks to more than both, as many times its size, is no text: that packs less well.
UNPACKED_BYTES, UNPACKED_RATIO = 256 * 2**20, 200
ROWS_PER_BYTE = 100  # a file that tells of more rows holds nothing that could be one
ELEMENT_BYTES = 8  # of a list's element, at least, as a Python object
READABLE = "text, numbers, and lists and structs of them"


def row_groups(file: str) -> int:
    """How many row groups a Parquet file has. Raises UserError for one that cannot be read."""
    with reading(file):
        metadata = _parquet(file).metadata
        _check_rows(file, metadata.num_rows)
        return metadata.num_row_groups


def read(
    file: str,
    row_group: int | None,
    columns: tuple[str, ...],
    optional: tuple[str, ...],
    max_row_bytes: int,
    wanted: np.ndarray | None,
) -> Iterator[tuple[int, dict | Rejected]]:
    """(row, record) of a Parquet file's row group, or of an Arrow file (None), in order.

    columns must be there, optional ones may; no other is read. wanted: increasing row numbers, all
    where None. A row that is too big or no UTF-8 comes as Rejected. Raises UserError for a file
    that is damaged, lacks a column, or whose batches do not fit in BATCH_BYTES.
    """
    with reading(file):
        parquet = _parquet(file) if row_group is not None else None
        schema = parquet.schema_arrow if parquet else _arrow_schema(file)
        used = _used_columns(file, schema, columns, optional)
        batches = (
            parquet.iter_batches(
                BATCH_ROWS, row_groups=[row_group], columns=used, use_threads=False
            )
            if parquet
            else _arrow_batches(file, [schema.get_field_index(name) for name in used])
        )
    first = unpacked = 0
    while wanted is None or first <= wanted[-1]:
        with reading(file, first), memory_limit(BATCH_BYTES):
            batch = next(batches, None)
            if batch is None:
                return
            batch = batch.select(used)
            _check_rows(file, len(batch))
            batch, is_utf8 = _validated(batch)
            unpacked += batch.nbytes
            check_unpacked(file, unpacked)
        rows = range(len(batch))
        if wanted is not None:
            here = np.searchsorted(wanted, [first, first + len(batch)])
            rows = (wanted[slice(*here)] - first).tolist()
        pieces = [batch] if wanted is None else (batch.slice(row, 1) for row in rows)
        with reading(file, first):
            records = (r for piece in pieces for r in _records(piece, is_utf8, max_row_bytes))
            for row, record in zip(rows, records, strict=True):
                yield first + row, record
        first += len(batch)


def check_unpacked(file: str, unpacked_bytes: int) -> None:
    """Raises UserError where so many bytes cannot be what a file of this size holds."""
    if unpacked_bytes > max(UNPACKED_BYTES, UNPACKED_RATIO * Path(file).stat().st_size):
        raise UserError(
            f"{file}: unpacks to more than {UNPACKED_RATIO} times its size, which no training data "
            "does; fetch the file again"
        )


@contextlib.contextmanager
def reading(file: str, row: int | None = None):
    """What pyarrow raises for a file that is no table or a damaged one, as one line."""
    import pyarrow as pa

    place = file if row is None else f"{file}: rows from {row + 1:,} on"
    try:
        yield
    except MemoryError as error:
        raise UserError(
            f"{place}: unpack to more than {BATCH_BYTES >> 20} MiB at a time "
            f"({first_line(error)}); write the file again in smaller row groups or record batches"
        ) from None
    except (pa.ArrowException, OSError, ValueError, KeyError, EOFError) as error:
        kind = Path(file).suffix.lower().removeprefix(".").capitalize()
        raise UserError(
            f"{place}: damaged, or not a readable {kind} file: {first_line(error)}; fetch the file "
            "again"
        ) from None


@contextlib.contextmanager
def memory_limit(more_bytes: int):
    """Inside, this process gets at most so much more memory; then MemoryError is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    taken = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData")
    )
    limits = [n for n in (soft, hard, taken + more_bytes) if n != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _parquet(file: str):
    import pyarrow.parquet as pq

    # Pages are read one by one; checksums are looked at where the writer made them.
    return pq.ParquetFile(
        file, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True
    )


def _open_arrow(file: str, **options):
    """A reader of an IPC file, or of an IPC stream, which is what `datasets` writes."""
    import pyarrow as pa

    source, options = pa.memory_map(file), pa.ipc.IpcReadOptions(use_threads=False, **options)
    try:
        return pa.ipc.open_file(source, options=options)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source, options=options)


def _arrow_schema(file: str):
    with memory_limit(BATCH_BYTES):
        return _open_arrow(file).schema


def _arrow_batches(file: str, fields: list[int]) -> Iterator:
    reader = _open_arrow(file, included_fields=fields)
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


def _used_columns(file: str, schema, columns: tuple[str, ...], optional: tuple[str, ...]):
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise UserError(
            f"{file}: no column {', '.join(missing)}; it has {_short(schema.names)}; set "
            "data.format to what fits"
        )
    used = [name for name in schema.names if name in (*columns, *optional)]
    for name in used:
        if used.count(name) > 1:
            raise UserError(f"{file}: {used.count(name)} columns {name}; keep one of them")
        if not _is_readable(schema.field(name).type):
            raise UserError(
                f"{file}: column {name} is {_short([str(schema.field(name).type)])}; expected "
                f"{READABLE}"
            )
    return used


def _is_readable(kind) -> bool:
    """Types of which a row is as large as its buffers say."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return types.is_string(kind.value_type) or types.is_large_string(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_readable(kind.value_type) and not types.is_dictionary(kind.value_type)
    if types.is_struct(kind):
        children = [kind.field(i).type for i in range(kind.num_fields)]
        return all(_is_readable(c) and not types.is_dictionary(c) for c in children)
    return types.is_primitive(kind) or any(
        of(kind)
        for of in (
            types.is_null,
            types.is_string,
            types.is_large_string,
            types.is_decimal,
        )
    )


def _check_rows(file: str, rows: int) -> None:
    size = Path(file).stat().st_size
    if rows > ROWS_PER_BYTE * size:
        raise UserError(f"{file}: tells of {rows:,} rows in {size:,} bytes; fetch the file again")


def _validated(batch) -> tuple:
    """(batch, whether all its texts are UTF-8); where not, its texts as bytes, of which each row
    decodes its own. Raises ArrowInvalid where buffers contradict each other: reading on would
    read foreign memory.
    """
    import pyarrow as pa

    try:
        batch.validate(full=True)
        return batch, True
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
    columns = [column.view(_as_bytes(column.type)) for column in batch.columns]
    batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    batch.validate(full=True)  # what stood behind the first wrong text
    return batch, False


def _as_bytes(kind):
    import pyarrow as pa
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind):
        return pa.binary() if types.is_string(kind) else pa.large_binary()
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in fields])
    if types.is_fixed_size_list(kind):
        return pa.list_(_as_bytes(kind.value_type), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    return pa.list_(_as_bytes(kind.value_type)) if types.is_list(kind) else kind


def _records(batch, is_utf8: bool, max_row_bytes: int) -> Iterator[dict | Rejected]:
    """The rows of a batch as Python objects, about max_row_bytes of them at once."""
    if len(batch) == 0:
        return
    if len(batch) == 1:
        yield _record(batch, is_utf8, max_row_bytes)
    elif is_utf8 and _size_bytes(batch) <= max_row_bytes:
        yield from batch.to_pylist()
    else:
        half = len(batch) // 2
        for piece in (batch.slice(0, half), batch.slice(half)):
            yield from _records(piece, is_utf8, max_row_bytes)


def _record(row, is_utf8: bool, max_row_bytes: int) -> dict | Rejected:
    import pyarrow as pa

    plain = [c.dictionary_decode() if hasattr(c, "dictionary") else c for c in row.columns]
    row = pa.RecordBatch.from_arrays(plain, names=row.schema.names)
    if (size := _size_bytes(row)) > max_row_bytes:
        return Rejected("row_too_big", f"{size} bytes, data.max_row_bytes={max_row_bytes}")
    record = row.to_pylist()[0]
    try:
        return record if is_utf8 else _decoded(record)
    except UnicodeDecodeError as error:
        return Rejected("invalid_utf8", f"byte {error.start} of a text")


def _decoded(value):
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _size_bytes(batch) -> int:
    """Bytes that the rows take, their elements counted too: a list of nulls has no buffer."""
    return batch.nbytes + ELEMENT_BYTES * sum(map(_elements, batch.columns))


def _elements(array) -> int:
    from pyarrow import types

    if types.is_struct(array.type):
        return sum(map(_elements, array.flatten()))
    if types.is_nested(array.type):  # a list
        inner = array.flatten()
        return len(inner) + _elements(inner)
    return 0


def _short(names: list[str]) -> str:
    text = ", ".join(name.encode("unicode_escape").decode() for name in names)
    return text if len(text) <= 300 else f"{text[:300]} .."


def first_line(error: BaseException) -> str:
    """What an error of a library says, as a part of a line."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
