"""Every kind of file gives the same rows, and bad ones are named."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from abscot.common.errors import UserError
from abscot.data import sources
from abscot.data.sources import Unit
from abscot.recipe.schema import DataConfig
from kit.examples import CONFIG

ROWS = [
    {"prompt": f"question {i}?", "cot": f"some steps {i}", "answer": str(i), "id": f"r{i}"}
    for i in range(700)
]


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def config(path, **changes) -> DataConfig:
    return replace(CONFIG, source=str(path), **changes)


def records(path, **changes) -> list[tuple[int, dict]]:
    data = config(path, **changes)
    return [
        item
        for unit in sources.find(data)
        for item in sources.read(unit, data, ("prompt", "cot", "answer"))
    ]


def write(path: Path) -> Path:
    """ROWS in the kind of file that the name says."""
    table = pa.Table.from_pylist([{**row, "unused": 0} for row in ROWS])
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=300)
    elif path.name == "stream.arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, 256)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, 300)
    else:
        packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        half = len(LINES) // 2
        # two members, as after `cat a.gz b.gz`
        path.write_bytes(packed(LINES[:half]) + packed(LINES[half:]))
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow", "stream.arrow"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = write(tmp_path / name)
    assert [record for _, record in records(path)] == ROWS
    data, wanted = config(path), np.array([0, 3, 299])
    unit = sources.find(data)[0]
    picked = list(sources.read(unit, data, ("prompt", "cot", "answer"), wanted))
    assert picked == [(i, ROWS[i]) for i in wanted]


def test_a_glob_reads_its_files_in_order_of_name(tmp_path):
    for i in (2, 0, 1):
        (tmp_path / f"part{i}.jsonl").write_text(json.dumps(ROWS[i]))
    assert [record["id"] for _, record in records(tmp_path / "part*.jsonl")] == ["r0", "r1", "r2"]


def test_hub_datasets_are_streamed_part_by_part(tmp_path):
    """A folder stands for the hub: `datasets` streams both through the same call."""
    for part in range(3):
        pq.write_table(
            pa.Table.from_pylist(ROWS[part * 100 : part * 100 + 100]),
            tmp_path / f"train-{part}-of-3.parquet",
        )
    data = config(tmp_path)
    units = [Unit(str(tmp_path), "hub", part, 3) for part in range(3)]
    found = [record for unit in units for _, record in sources.read(unit, data, ())]
    assert [record["id"] for record in found] == [row["id"] for row in ROWS[:300]]
    assert [row for row, _ in sources.read(units[1], data, (), np.array([5, 50]))] == [5, 50]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 80), st.booleans())
def test_pieces_of_a_file_hold_every_line_once_whatever_their_size(
    tmp_path_factory, sizes, chunk, newline_at_end
):
    path = tmp_path_factory.mktemp("pieces") / "a.jsonl"
    lines = [json.dumps({"i": i, "x": "y" * size}) if size else "" for i, size in enumerate(sizes)]
    path.write_text("\n".join(lines) + "\n" * newline_at_end)
    size = path.stat().st_size
    units = [Unit(str(path), "jsonl", at, min(at + chunk, size)) for at in range(0, size, chunk)]
    pieces = [[record for _, record in sources.read(unit, CONFIG, ())] for unit in units]
    found = [record for piece in pieces for record in piece]
    expected = [json.loads(line) if line else None for line in path.read_text().split("\n")]
    assert found == (expected[:-1] if expected[-1] is None else expected)


def test_bad_lines_are_rejected_one_by_one(tmp_path):
    path = tmp_path / "a.jsonl"
    bad = [
        b'{"broken',
        b'{"prompt": "\xff\xfe"}',
        b"[1, 2]",
        b'{"x": "' + b"y" * 20_000 + b'"}',
        b"[" * 100_000,
    ]
    path.write_bytes(
        b"\n".join([LINES.split(b"\n")[0], *bad[:3], b"", bad[3], LINES.split(b"\n")[1]]) + b"\n"
    )
    found = [(row, getattr(record, "reason", record)) for row, record in records(path)]
    assert found == [
        (0, ROWS[0]),
        (1, "broken_json"),
        (2, "invalid_utf8"),
        (3, "broken_json"),
        (4, None),
        (5, "row_too_big"),
        (6, ROWS[1]),
    ]
    path.write_bytes(bad[4])
    # nested too deep to parse
    assert records(path, max_row_bytes=10**6)[0][1].reason == "broken_json"


def test_a_row_of_10_MB_is_rejected_without_stopping_the_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    big = json.dumps({"prompt": "p", "cot": "x" * 10_000_000, "answer": "y"}).encode()
    path.write_bytes(gzip.compress(big + b"\n" + LINES, 1))
    found = records(path, max_row_bytes=DataConfig().max_row_bytes)
    assert found[0][1].reason == "row_too_big" and [record for _, record in found[1:]] == ROWS


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_files_that_were_cut_off_are_named(tmp_path, name):
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=rf"{name}.*(cut off|damaged|not a readable)"):
        records(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_empty_files_are_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name}: empty file"):
        sources.find(config(tmp_path / name))


def test_missing_unreadable_and_unknown_files_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.jsonl: no such file"):
        sources.find(config(tmp_path / "nowhere.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="folder.jsonl: a directory; give a file or a glob"):
        sources.find(config(tmp_path / "folder.jsonl"))
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="rows.csv: unknown kind of file; known: .jsonl"):
        sources.find(config(tmp_path / "rows.csv"))
    (tmp_path / "b.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match="b.parquet: damaged, or not a readable Parquet file"):
        sources.find(config(tmp_path / "b.parquet"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_without_the_columns_is_named_at_once(tmp_path, name):
    data = config(write(tmp_path / name))
    with pytest.raises(
        UserError,
        match=f"{name}: no column messages; it has prompt, cot, answer, id, unused; .*data.format",
    ):
        list(sources.read(sources.find(data)[0], data, ("messages",)))
