"""Bad files of training data: each is refused in one line that names it, in bounded time and
memory, and nothing is published.
"""

import gzip
import json
import os
import socket
import struct
import zlib

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zstandard

from abscot.recipe.run import Run
from kit.corpus import refused
from kit.raw_data import make, raw_rows, recipe_of, write_jsonl

ROWS = [{"id": f"r{i}", "prompt": "2+2?", "cot": f"two and {i}", "answer": "4"} for i in range(500)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = pa.Table.from_pylist(ROWS)


def arrow_file(path, table=TABLE, **options) -> None:
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)


def arrow_stream(path, table=TABLE, **options) -> None:
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)


def parquet(path, table=TABLE, **options) -> None:
    pq.write_table(table, path, **options)


def replaced(write, old: bytes, new: bytes):
    """A writer of the same file with other bytes in it."""

    def change(path) -> None:
        write(path)
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))

    return change


def cut(write, keep: float):
    def shorten(path) -> None:
        write(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return shorten


def bytes_of(data: bytes):
    return lambda path: path.write_bytes(data)


def packed_zeros(size: int, compressor) -> bytes:
    """`size` zeros, compressed piece by piece."""
    pieces = [compressor.compress(bytes(1 << 24)) for _ in range(size >> 24)]
    return b"".join([*pieces, compressor.flush()])


def gzip_bomb(path) -> None:
    path.write_bytes(packed_zeros(300 << 20, zlib.compressobj(1, zlib.DEFLATED, 31)))


def zstd_bomb(path) -> None:
    path.write_bytes(packed_zeros(4 << 30, zstandard.ZstdCompressor(3).compressobj()))


def bomb_of(line: bytes):
    """A gigabyte of a short line."""

    def write(path) -> None:
        packer = zstandard.ZstdCompressor(3).compressobj()
        pieces = [packer.compress(line * ((1 << 24) // len(line))) for _ in range(64)]
        path.write_bytes(b"".join([*pieces, packer.flush()]))

    return write


def in_a_child(write):
    """A writer whose memory is not this process's."""

    def fork(path) -> None:
        if (pid := os.fork()) == 0:
            try:
                write(path)
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0 and path.exists()

    return fork


def big_cells(kind) -> pa.Table:
    """One text of 600 MB."""
    cot = pa.array(["x" * 600_000_000], kind)
    return pa.table({"prompt": ["2+2?"], "cot": cot, "answer": ["4"]})


@in_a_child
def parquet_bomb(path) -> None:
    options = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    parquet(path, big_cells(pa.string()), compression="zstd", compression_level=1, **options)


@in_a_child
def parquet_dictionary_bomb(path) -> None:
    """A text of 5 MB that stands in 1,000 rows."""
    indices = pa.array([0] * 1000, pa.int32())
    text = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 5_000_000]))
    plain = pa.array(["4"] * 1000)
    table = pa.table({"prompt": plain, "cot": text, "answer": plain})
    parquet(path, table, write_statistics=False, store_schema=False)


@in_a_child
def arrow_bomb(path) -> None:
    arrow_file(path, big_cells(pa.large_string()), compression="zstd", use_threads=False)


@in_a_child
def stream_bomb(path) -> None:
    arrow_stream(path, big_cells(pa.large_string()), compression="lz4", use_threads=False)


def endless_nulls(path) -> None:
    nulls = pa.nulls(10**9)
    batch = pa.record_batch({"prompt": nulls, "cot": nulls, "answer": nulls})
    with pa.ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(batch)


def offsets(*ends: int) -> bytes:
    return struct.pack(f"<{len(ends)}i", *ends)


THREE = pa.Table.from_pylist(
    [{"prompt": "a" * n, "cot": "b" * n, "answer": "c" * n} for n in (5, 6, 7)]
)


def three(path) -> None:
    arrow_file(path, THREE)


def columns(**changes) -> pa.Table:
    whole = {name: pa.array(["text"] * 3) for name in ("prompt", "cot", "answer")}
    return pa.table({**whole, **changes})


def run_ends():
    return pa.RunEndEncodedArray.from_arrays(pa.array([3], pa.int32()), pa.array(["text"]))


def two_of_a_name(write):
    table = pa.Table.from_arrays(
        [pa.array(["text"])] * 4, names=["prompt", "cot", "answer", "prompt"]
    )
    return lambda path: write(path, table)


DAMAGED = "damaged"
FILES = {
    "empty": ("rows.jsonl", bytes_of(b""), ["empty file"]),
    "empty_gzip": ("rows.jsonl.gz", bytes_of(b""), ["empty file"]),
    "empty_parquet": ("rows.parquet", bytes_of(b""), ["empty file"]),
    "gzip_of_nothing": ("rows.jsonl.gz", bytes_of(gzip.compress(b"")), ["no rows"]),
    "zstd_of_nothing": ("rows.jsonl.zst", bytes_of(zstandard.compress(b"")), ["no rows"]),
    "blank_lines": ("rows.jsonl", bytes_of(b"\n\n  \n\r\n"), ["no rows"]),
    "only_a_mark": ("rows.jsonl", bytes_of(b"\xef\xbb\xbf"), ["no rows"]),
    "binary": ("rows.jsonl", bytes_of(bytes(range(256)) * 50), ["no row is left", "invalid_utf8"]),
    "utf_16": (
        "rows.jsonl",
        bytes_of(LINES.decode().encode("utf-16")),
        ["no row is left", "invalid_utf8", "rows.jsonl:1"],
    ),
    "one_array": ("rows.json", bytes_of(json.dumps(ROWS).encode()), ["expected an object"]),
    "pretty_array": ("rows.json", bytes_of(json.dumps(ROWS, indent=1).encode()), ["broken_json"]),
    "csv_in_disguise": ("rows.jsonl", bytes_of(b"prompt,cot\na,b\n"), ["broken_json 2"]),
    "gzip_in_disguise": ("rows.jsonl", bytes_of(gzip.compress(LINES)), ["no row is left"]),
    "no_gzip": ("rows.jsonl.gz", bytes_of(LINES), [DAMAGED, "after line 0"]),
    "no_zstd": ("rows.jsonl.zst", bytes_of(LINES), [DAMAGED, "after line 0"]),
    "cut_gzip": (
        "rows.jsonl.gz",
        cut(bytes_of(gzip.compress(os.urandom(99_999).hex().encode() + b"\n" + LINES)), 0.9),
        ["damaged or cut off after line"],
    ),
    "cut_zstd": (
        "rows.jsonl.zst",
        cut(bytes_of(zstandard.compress(LINES)), 0.9),
        ["damaged or cut off after line"],
    ),
    "gzip_with_a_wrong_sum": (
        "rows.jsonl.gz",
        bytes_of(gzip.compress(LINES)[:-8] + b"12345678"),
        ["damaged or cut off after line"],
    ),
    "gzip_bomb": ("rows.jsonl.gz", gzip_bomb, ["unpacks to more than 200 times its size"]),
    "zstd_bomb": ("rows.jsonl.zst", zstd_bomb, ["unpacks to more than 200 times its size"]),
    "bomb_of_blank_lines": ("rows.jsonl.zst", bomb_of(b"\n"), ["20,000 lines"]),
    "bomb_of_numbers": ("rows.jsonl.zst", bomb_of(b"1\n"), ["20,000 lines"]),
    "bomb_of_empty_rows": ("rows.jsonl.zst", bomb_of(b"{}\n"), ["20,000 lines"]),
    "bomb_of_blanks": ("rows.jsonl.zst", bomb_of(b" "), ["unpacks to more than 200 times"]),
    "wrong_columns": (
        "rows.jsonl",
        bytes_of(b'{"question": "2+2?"}\n' * 20_001),
        ["20,000 lines", "prompt or cot or answer; set data.format"],
    ),
    "no_parquet": ("rows.parquet", bytes_of(b"PAR1" + b"x" * 100), [DAMAGED]),
    "parquet_of_marks": ("rows.parquet", bytes_of(b"PAR1PAR1"), [DAMAGED]),
    "parquet_with_a_lying_footer": (
        "rows.parquet",
        bytes_of(b"PAR1" + b"\0" * 8 + struct.pack("<i", 2**31 - 1) + b"PAR1"),
        [DAMAGED],
    ),
    "cut_parquet": ("rows.parquet", cut(parquet, 0.9), [DAMAGED]),
    "half_a_parquet": ("rows.parquet", cut(parquet, 0.5), [DAMAGED]),
    "parquet_with_changed_pages": (
        "rows.parquet",
        replaced(
            lambda path: parquet(path, compression=None, write_page_checksum=True),
            b"two and 77",
            b"two_and 77",
        ),
        [DAMAGED],
    ),
    "parquet_bomb": ("rows.parquet", parquet_bomb, ["unpack to more than 512 MiB"]),
    "parquet_dictionary_bomb": ("rows.parquet", parquet_dictionary_bomb, ["200 times its size"]),
    "parquet_without_rows": ("rows.parquet", lambda p: parquet(p, TABLE.slice(0, 0)), ["no rows"]),
    "no_arrow": ("rows.arrow", bytes_of(b"ARROW1\0\0" + b"x" * 100), [DAMAGED]),
    "arrow_of_text": ("rows.arrow", bytes_of(LINES), [DAMAGED]),
    "arrow_of_zeros": ("rows.arrow", bytes_of(bytes(1000)), []),
    "cut_arrow": ("rows.arrow", cut(arrow_file, 0.5), [DAMAGED]),
    "cut_stream": ("rows.arrow", cut(arrow_stream, 0.5), [DAMAGED]),
    "arrow_with_a_giant_header": (
        "rows.arrow",
        bytes_of(struct.pack("<iI", -1, 2**31 - 1) + b"x" * 100),
        [DAMAGED],
    ),
    "arrow_bomb": ("rows.arrow", arrow_bomb, ["unpack to more than 512 MiB"]),
    "stream_bomb": ("rows.arrow", stream_bomb, ["unpack to more than 512 MiB"]),
    "arrow_with_endless_nulls": ("rows.arrow", endless_nulls, ["tells of 1,000,000,000 rows"]),
    "arrow_with_offsets_beyond_its_text": (
        "rows.arrow",
        replaced(three, offsets(0, 5, 11, 18), offsets(0, 5, 11, 2**30)),
        [DAMAGED],
    ),
    "arrow_with_offsets_that_go_back": (
        "rows.arrow",
        replaced(three, offsets(0, 5, 11, 18), offsets(0, 5, 2, 18)),
        [DAMAGED],
    ),
    "arrow_with_negative_offsets": (
        "rows.arrow",
        replaced(three, offsets(0, 5, 11, 18), offsets(0, -5, 11, 18)),
        [DAMAGED],
    ),
    "arrow_with_a_lying_packed_size": (
        "rows.arrow",
        replaced(
            lambda path: arrow_file(path, columns(cot=["x" * 5000] * 3), compression="zstd"),
            struct.pack("<q", 15_000),
            struct.pack("<q", 2**60),
        ),
        ["rows.arrow"],
    ),
    "feather_of_another_schema": (
        "rows.arrow",
        lambda path: feather.write_feather(pa.table({"text": ["a"]}), str(path)),
        ["no column prompt, cot, answer; it has text"],
    ),
    "text_column_of_maps": (
        "rows.arrow",
        lambda path: arrow_file(
            path, columns(cot=pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())))
        ),
        ["column cot is map<string, int64>"],
    ),
    "text_column_of_runs": (
        "rows.arrow",
        lambda path: arrow_file(path, columns(cot=run_ends())),
        ["column cot is run_end_encoded"],
    ),
    "text_column_of_numbers": (
        "rows.parquet",
        lambda path: parquet(path, columns(cot=pa.array([1, 2, 3]))),
        ["no row is left", "not_text_cot 3"],
    ),
    "text_column_of_bytes": (
        "rows.parquet",
        lambda path: parquet(path, columns(cot=pa.array([b"a"] * 3))),
        ["column cot is binary; expected text"],
    ),
    "text_column_of_nulls": (
        "rows.parquet",
        lambda path: parquet(path, columns(cot=pa.nulls(3))),
        ["no row is left", "missing_column_cot 3"],
    ),
    "a_column_twice_in_arrow": ("rows.arrow", two_of_a_name(arrow_file), ["2 columns prompt"]),
    "a_column_twice_in_parquet": ("rows.parquet", two_of_a_name(parquet), ["2 columns prompt"]),
    "many_columns": (
        "rows.parquet",
        lambda path: parquet(path, pa.table({f"c{i}\n": [1] for i in range(2000)})),
        ["no column prompt", ".."],
    ),
    "unknown_kind": ("rows.csv", bytes_of(b"a,b\n"), ["unknown kind of file", ".jsonl"]),
    "archive": ("rows.tar.gz", bytes_of(gzip.compress(LINES)), ["unknown kind of file"]),
    "no_suffix": ("rows", bytes_of(LINES), ["unknown kind of file"]),
    "newline_in_the_name": ("ro\nws.jsonl", bytes_of(LINES), ["rename it"]),
    "escape_in_the_name": ("\x1b[31mrows.jsonl", bytes_of(LINES), ["rename it"]),
    "no_utf8_in_the_name": (os.fsdecode(b"rows\xff.jsonl"), bytes_of(LINES), ["rename it"]),
    "pipe": ("rows.jsonl", os.mkfifo, ["not a regular file"]),
    "pipe_as_parquet": ("rows.parquet", os.mkfifo, ["not a regular file"]),
    "device": ("rows.jsonl", lambda path: path.symlink_to("/dev/zero"), ["not a regular file"]),
    "socket": (
        "rows.jsonl",
        lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
        ["not a regular file"],
    ),
    "directory": ("rows.jsonl", lambda path: path.mkdir(), ["a directory", "/*.jsonl"]),
    "link_to_nothing": ("rows.jsonl", lambda path: path.symlink_to("gone"), ["cannot be read"]),
    "link_to_itself": ("rows.jsonl", lambda path: path.symlink_to(path), ["cannot be read"]),
}


@pytest.mark.parametrize(("name", "write", "words"), FILES.values(), ids=FILES)
def test_a_bad_file_is_refused_by_name(tmp_path, name, write, words):
    write(tmp_path / name)
    printed = name.isprintable()  # what is not can be named by a glob alone
    recipe = recipe_of(tmp_path, tmp_path / (name if printed else "*.jsonl"))
    refused(lambda: make(recipe), *([name] if printed else []), *words)
    assert not Run.of(recipe).shards.exists()


NO_ROW = {"no rows", "no row is left", "broken_json", "broken_json 2", "expected an object"}
READ_ON = {name: case for name, case in FILES.items() if not NO_ROW & set(case[2])}


@pytest.mark.parametrize(("name", "write", "words"), READ_ON.values(), ids=READ_ON)
def test_good_files_beside_it_do_not_hide_a_bad_one(tmp_path, name, write, words):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a.jsonl", raw_rows(5))
    write(tmp_path / "data" / name)
    if not (tmp_path / "data" / name).is_dir():  # directories are no part of a glob
        refused(lambda: make(recipe_of(tmp_path, tmp_path / "data" / "*")))


def test_an_empty_directory_and_a_glob_of_nothing(tmp_path):
    refused(lambda: make(recipe_of(tmp_path, tmp_path)), "a directory")
    refused(lambda: make(recipe_of(tmp_path, tmp_path / "*.jsonl")), "no such file")


@pytest.mark.parametrize(
    "source",
    ["/" + "x" * 3000, "/" + "x" * 300, "~nobody/x.jsonl", "/["],
)
def test_names_that_cannot_be(tmp_path, source):
    refused(lambda: make(recipe_of(tmp_path, source)), "no such file")
