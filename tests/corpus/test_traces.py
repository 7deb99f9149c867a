"""Bad trace files: those of a run, and those that a user brings."""

import dataclasses
import gzip
import json
import os
import pickle
import resource
import shutil

import pyarrow as pa
import pytest

from abscot.common import files
from abscot.generation.trace_exchange import export_traces, import_traces
from abscot.generation.trace_jobs import generate, open_job
from abscot.generation.trace_records import JOB, SCHEMA, SET_SCHEMA, STATS, TRACES
from abscot.generation.trace_set import TraceSet, stats_of
from abscot.recipe.load import dump
from abscot.reporting import run_data
from kit.corpus import launch, one_line, refused
from kit.tiny_run import make_tiny_run, training_of
from kit.trace_runs import ROWS

MEND = "and run: python launch/traces.py --recipe"
NO_JSON = {
    "empty": b"",
    "cut": b'{"round": 1, "pha',
    "binary": bytes(range(256)),
    "latin-1": '{"phase": "é"}'.encode("latin-1"),
    "list": b"[]",
    "number": b"7",
    "null": b"null",
    "text": b'"A"',
    "pickle": pickle.dumps({"round": 1}),
    "gzip": gzip.compress(b"{}"),
    "other object": b'{"a": 1}',
}
NO_TABLE = {
    "empty": lambda good: b"",
    "cut": lambda good: good[: len(good) // 2],
    "without its end": lambda good: good[:-8],
    "text": lambda good: b"row,id,trace\n0,row/0,5\n",
    "pickle": lambda good: pickle.dumps([1, 2]),
    "zeros": lambda good: bytes(len(good)),
    "other bytes": lambda good: good[:8] + bytes(len(good) - 16) + good[-8:],
    "json": lambda good: b"{}",
}


@pytest.fixture(scope="module")
def published(made_once):
    """(job, its files by name) of a published set."""
    _, recipe, run, _ = made_once
    shutil.rmtree(run.root / "teacher_traces", ignore_errors=True)
    run.config.write_text(dump(recipe))
    job = open_job(training_of(recipe, run, 1, "A"))
    generate(job)
    kept = {path.name: path.read_bytes() for path in job.final.iterdir()}
    shutil.rmtree(job.final)
    return job, kept


@pytest.fixture
def made(published):
    """The same, whole again."""
    job, kept = published
    shutil.rmtree(job.training.run.root / "teacher_traces", ignore_errors=True)
    job.final.mkdir(parents=True)
    for name, content in kept.items():
        (job.final / name).write_bytes(content)
    return job


def load(job) -> TraceSet:
    return TraceSet.load(job.final, job.store, 1, "A", job.vocab)


def table_of(job) -> pa.Table:
    with pa.ipc.open_file(job.final / TRACES) as reader:
        return reader.read_all()


def write_table(path, table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def seal(job, **meta) -> None:
    """New checksums, and a changed meta: what cannot be seen by its checksum."""
    old = json.loads((job.final / files.DONE).read_text())["meta"]
    files.seal(job.final, {key: v for key, v in {**old, **meta}.items() if v != "gone"})


# stats.json


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_stats_that_are_no_record(made, content):
    (made.final / STATS).write_bytes(content)
    refused(lambda: stats_of(made.final), STATS, f"delete {made.final} {MEND}")
    refused(lambda: run_data.read(made.training.run), STATS)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"traces": "many"}, "traces"),
        ({"traces": 1.5}, "traces"),
        ({"traces": True}, "traces"),
        ({"traces": None}, "traces"),
        ({"traces": -1}, "traces"),
        ({"traces": 10**30}, "add up"),
        ({"traces": 159}, "add up"),
        ({"tokens": 3}, "add up"),
        ({"unique_share": float("nan")}, ""),
        ({"unique_share": float("inf")}, ""),
        ({"unique_share": 1.5}, "unique_share"),
        ({"top_token_share": -0.1}, "top_token_share"),
        ({"generation_s": float("nan")}, ""),
        ({"zipf_r2": float("-inf")}, ""),
        ({"length_histogram": {}}, "length_histogram"),
        ({"length_histogram": [[1]]}, "length_histogram.0"),
        ({"length_histogram": [-1, 161]}, "length_histogram.0"),
        ({"token_counts": ["a"]}, "token_counts.0"),
        ({"warnings": "none"}, "warnings"),
        ({"warnings": [1]}, "warnings.0"),
        ({"source": None}, "source"),
        ({"cut_prompts": "gone"}, "cut_prompts"),
        ({"warnings": "gone"}, "warnings"),
        ({"entropy": 4.0}, "entropy"),
    ],
    ids=str,
)
def test_stats_with_a_wrong_value(made, change, key):
    stats = {**json.loads((made.final / STATS).read_text()), **change}
    stats = {k: v for k, v in stats.items() if v != "gone"}
    (made.final / STATS).write_text(json.dumps(stats))
    refused(lambda: stats_of(made.final), STATS, key, f"delete {made.final} {MEND}")


# traces.arrow and the meta of DONE


@pytest.mark.parametrize("damage", NO_TABLE.values(), ids=NO_TABLE)
def test_a_table_that_is_none(made, damage):
    path = made.final / TRACES
    path.write_bytes(damage(path.read_bytes()))
    refused(lambda: load(made), TRACES, f"delete {made.final} {MEND}")


def column(name: str, change):
    """Changes the values of a column, the types being kept."""

    def apply(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        change(values)
        at = SET_SCHEMA.get_field_index(name)
        return table.set_column(
            at, SET_SCHEMA.field(at), pa.array(values, SET_SCHEMA.field(at).type)
        )

    return apply


def put(at: int, value):
    def change(values: list) -> None:
        values[at] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (column("row", put(3, 2)), "ascending"),
        (column("row", put(3, 4)), "ascending"),
        (column("row", put(0, -1)), "ascending"),
        (column("row", put(ROWS - 1, ROWS)), "ascending"),
        (column("row", put(ROWS - 1, 2**40)), "ascending"),
        (column("row", put(0, None)), "missing values"),
        (column("id", put(0, None)), "missing values"),
        (column("trace", put(0, None)), "missing values"),
        (column("trace", put(0, [None, 260])), "missing values"),
        (column("id", put(0, "row/1")), "another row's id"),
        (column("id", put(0, "")), "another row's id"),
        (column("trace", put(0, [5, 6])), "outside V_abs"),
        (column("trace", put(0, [-1, -1])), "outside V_abs"),
        (column("trace", put(0, [])), "trace lengths 0..12 leave 2..12"),
        (lambda t: t.slice(1), "159 rows are not the 160"),
        (lambda t: t.slice(0, 0), "0 rows are not the 160"),
        (lambda t: pa.concat_tables([t, t]), "ascending"),
        (lambda t: t.drop_columns("id"), "columns"),
        (lambda t: t.append_column("x", t["row"]), "columns"),
        (lambda t: t.select(["id", "row", "trace"]), "columns"),
        (lambda t: t.cast(SET_SCHEMA.set(0, pa.field("row", pa.int32()))), "columns"),
        (lambda t: t.cast(SET_SCHEMA.set(2, pa.field("trace", pa.list_(pa.int64())))), "columns"),
        (lambda t: t.rename_columns(["row", "id", "tokens"]), "columns"),
    ],
)
def test_a_table_of_other_values(made, change, words):
    write_table(made.final / TRACES, change(table_of(made)))
    seal(made)
    refused(lambda: load(made), TRACES, words, f"delete {made.final} {MEND}", "--round 1 --phase A")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 3}, "meta: version"),
        ({"version": "gone"}, "meta: version"),
        ({"version": True}, "meta: version"),
        ({"round": "1"}, "meta: round"),
        ({"round": 2}, "traces of round 2, expected 1"),
        ({"phase": "B"}, "traces of phase B, expected A"),
        ({"phase": None}, "meta: phase"),
        ({"store": "other"}, "traces of store other, expected"),
        ({"store": 5}, "meta: store"),
        ({"model_fingerprint": "gone"}, "meta: model_fingerprint"),
        ({"rows": -1}, "meta: rows"),
        ({"rows": 1.0}, "meta: rows"),
        ({"rows_sha256": "other"}, "rows are not the 160"),
        ({"m_max": 3}, "trace lengths"),
        ({"m_min": 12}, "trace lengths"),
        ({"m_min": -1}, "meta: m_min"),
        ({"sampled": []}, "meta: sampled"),
        ({"sampled": {"seed": 1}}, "meta: sampled.source"),
        ({"imported": {}}, "meta: imported"),
        ({"imported": [{"file": "a"}]}, "meta: imported.0.sha256"),
        ({"extra": 1}, "meta: extra"),
    ],
    ids=str,
)
def test_a_set_of_another_meta(made, change, words):
    seal(made, **change)
    refused(lambda: load(made), words, f"delete {made.final} {MEND}")


@pytest.mark.parametrize("name", [TRACES, STATS])
@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_a_file_that_is_not_there(made, name, kind):
    (made.final / name).unlink()
    if kind == "directory":
        (made.final / name).mkdir()
    refused(lambda: (load(made), stats_of(made.final)), name, f"delete {made.final}")


# job.json and the chunks of a killed job


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_a_job_that_is_no_record(made, content):
    shutil.rmtree(made.final)
    generate(made, 0, 3)
    (made.parts / JOB).write_bytes(content)
    refused(lambda: generate(made, 1, 3), JOB, f"delete {made.parts} {MEND}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 3}, "version"),
        ({"m_max": 9}, "begun with another m_max"),
        ({"m_max": "12"}, "m_max"),
        ({"seed": 4}, "seed"),
        ({"sampled": None}, "begun with another"),
    ],
    ids=str,
)
def test_a_job_of_other_values(made, change, words):
    shutil.rmtree(made.final)
    generate(made, 0, 3)
    job = {**json.loads((made.parts / JOB).read_text()), **change}
    (made.parts / JOB).write_text(json.dumps(job))
    refused(lambda: generate(made, 1, 3), words, f"delete {made.parts} {MEND}")


def chunk_column(name: str, value):
    def apply(path) -> None:
        with pa.ipc.open_file(path) as reader:
            table = reader.read_all()
        values, at = table[name].to_pylist(), SCHEMA.get_field_index(name)
        values[0] = value
        changed = pa.array(values, SCHEMA.field(at).type)
        write_table(path, table.set_column(at, SCHEMA.field(at), changed))

    return apply


def chunk_meta(text: bytes | None):
    def apply(path) -> None:
        with pa.ipc.open_file(path) as reader:
            table = reader.read_all()
        write_table(path, table.replace_schema_metadata(None if text is None else {"meta": text}))

    return apply


def chunk_bytes(damage):
    return lambda path: path.write_bytes(damage(path.read_bytes()))


CHUNKS = {
    **{name: chunk_bytes(damage) for name, damage in NO_TABLE.items()},
    "another row": chunk_column("row", 77),
    "another id": chunk_column("id", "row/77"),
    "another sample": chunk_column("sample", 2),
    "foreign token": chunk_column("trace", [5, 6]),
    "too short": chunk_column("trace", []),
    "too long": chunk_column("trace", [260] * 13),
    "null trace": chunk_column("trace", None),
    "no meta": chunk_meta(None),
    "meta of no JSON": chunk_meta(b"{"),
    "meta of a list": chunk_meta(b"[]"),
    "NaN": chunk_meta(b'{"seconds": NaN, "cut_prompts": 0}'),
    "negative": chunk_meta(b'{"seconds": 1.0, "cut_prompts": -1}'),
    "other key": chunk_meta(b'{"seconds": 1.0, "cut_prompts": 0, "x": 1}'),
}


@pytest.mark.parametrize("damage", CHUNKS.values(), ids=CHUNKS)
def test_a_damaged_chunk_is_said_and_made_again(made, damage, capsys):
    expected = (made.final / TRACES).read_bytes()
    shutil.rmtree(made.final)
    generate(made, 0, 2)
    damage(made.chunk_path(2))
    refused(lambda: generate(made, 1, 2), made.chunk_path(2).name, "delete", MEND)
    assert generate(made, 0, 2)
    said = capsys.readouterr().out
    assert "chunk_000002.arrow" in said and "its 8 traces are made again" in said
    assert (made.final / TRACES).read_bytes() == expected


# What a user brings


def good(row: int) -> dict:
    return {"id": f"row/{row}", "trace": ["<TOKEN_A>", "<TOKEN_BL>", "<TOKEN_C>"]}


def brought(made, tmp_path, lines: list[bytes]):
    shutil.rmtree(made.final, ignore_errors=True)
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def lines_with(line) -> list[bytes]:
    """All rows, the third being this line."""
    lines = [json.dumps(good(row)).encode() for row in range(ROWS)]
    lines[2] = line if isinstance(line, bytes) else json.dumps(line).encode()
    return lines


LINES = {
    "no JSON": (b"{", "not JSON"),
    "two objects": (b"{} {}", "not JSON"),
    "a list": (b"[1]", "expected an object, found [1]"),
    "a text": (b'"<TOKEN_A>"', "expected an object"),
    "null": (b"null", "expected an object, found None"),
    "binary": (b"\x80\x81", "not UTF-8 (byte 0"),
    "latin-1": ('{"id": "é"}'.encode("latin-1"), "not UTF-8"),
    "UTF-16": ('{"id": "a"}'.encode("utf-16"), "not UTF-8"),
    "BOM inside": (b'\xef\xbb\xbf{"id": "row/2"}', "not JSON"),
    "NaN": (b'{"id": "row/2", "trace": [NaN]}', "NaN is no JSON number"),
    "Infinity": (b'{"id": "row/2", "trace": [Infinity]}', "no JSON number"),
    "a key twice": (b'{"id": "row/2", "id": "row/3", "trace": []}', 'key "id" stands there twice'),
    "5,000 digits": (b'{"id": ' + b"1" * 5000 + b', "trace": []}', "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "deep trace": (b'{"id": "row/2", "trace": ' + b"[" * 400 + b"]" * 400 + b"}", "trace:"),
    "5 MB": (b'{"id": "' + b"a" * 5_000_000 + b'"}', "longer than"),
    "a NUL": (b'{"id": "row/2"\x00}', "not JSON"),
    "no trace": ({"id": "row/2"}, "trace: expected tokens or ids under this key, found ['id']"),
    "null trace": ({"id": "row/2", "trace": None}, "trace: expected a list of tokens or ids"),
    "number": ({"id": "row/2", "trace": 5}, "trace: expected a list of tokens or ids, found 5"),
    "object": ({"id": "row/2", "trace": {"a": 1}}, "trace: expected a list"),
    "mixed": ({"id": "row/2", "trace": ["<TOKEN_A>", 151671]}, "trace: expected a list"),
    "floats": ({"id": "row/2", "trace": [151671.0]}, "trace: expected a list"),
    "booleans": ({"id": "row/2", "trace": [True]}, "trace: expected a list"),
    "nested": ({"id": "row/2", "trace": [["<TOKEN_A>"]]}, "trace: expected a list"),
    "words": ({"id": "row/2", "trace": "let me think"}, "trace: expected tokens like <TOKEN_A>"),
    "commas": ({"id": "row/2", "trace": "<TOKEN_A>,<TOKEN_B>"}, "trace: expected tokens like"),
    "half a token": ({"id": "row/2", "trace": "<TOKEN_A><TOKEN_"}, "trace: expected tokens like"),
    "ids as tokens": ({"id": "row/2", "tokens": [5]}, "tokens: expected a list of tokens"),
    "text as tokens": ({"id": "row/2", "tokens": "<TOKEN_A>"}, "tokens: expected a list"),
    "tokens as ids": ({"id": "row/2", "trace_ids": ["a"]}, "trace_ids: expected a list of ids"),
    "text as ids": ({"id": "row/2", "token_ids": "5"}, "token_ids: expected a list of ids"),
    "id of a list": ({**good(2), "id": [2]}, "id: expected a text or a whole number"),
    "id of a float": ({**good(2), "id": 2.0}, "id: expected a text or a whole number"),
    "id of a boolean": ({**good(2), "id": True}, "id: expected a text or a whole number"),
    "prompt of a list": ({**good(2), "id": "x", "prompt": []}, "prompt: expected a text"),
    "surrogate prompt": (b'{"id": "x", "prompt": "\\ud800", "trace": []}', "lone surrogates"),
    "no name": ({"trace": ["<TOKEN_A>"]}, "id: expected the id or the prompt of its row"),
    "empty object": ({}, "id: expected the id or the prompt"),
}


@pytest.mark.parametrize(("line", "words"), LINES.values(), ids=LINES)
def test_a_line_that_cannot_be_read(made, tmp_path, line, words):
    path = brought(made, tmp_path, lines_with(line))
    refused(lambda: import_traces(made, str(path)), f"{path}:3", words)
    assert not made.final.exists()


COUNTED = {
    "no such token": ({**good(2), "trace": ["<TOKEN_ZZ>"] * 3}, "with tokens outside the codebook"),
    "lower case": ({**good(2), "trace": "<token_a>"}, "with tokens outside the codebook"),
    "delimiter inside": (
        {**good(2), "trace": ["<TOKEN_A>", "<endabstract>", "<TOKEN_A>"]},
        "with tokens outside the codebook",
    ),
    "begun twice": (
        {**good(2), "trace": ["<beginabstract>"] * 2 + ["<TOKEN_A>"] * 2},
        "with tokens outside the codebook",
    ),
    "other ids": ({**good(2), "trace": [1, 2, 3]}, "with tokens outside the codebook"),
    "huge ids": ({**good(2), "trace": [2**70] * 3}, "with tokens outside the codebook"),
    "negative ids": ({**good(2), "trace": [-5] * 3}, "with tokens outside the codebook"),
    "empty": ({**good(2), "trace": []}, "with an empty trace"),
    "empty text": ({**good(2), "trace": ""}, "with an empty trace"),
    "only delimiters": (
        {**good(2), "trace": ["<beginabstract>", "<endabstract>"]},
        "with an empty trace",
    ),
    "too short": ({**good(2), "trace": ["<TOKEN_A>"]}, "shorter than traces.m_min=2"),
    "too long": ({**good(2), "trace": ["<TOKEN_A>"] * 13}, "longer than traces.m_max=12"),
    "question of a row": ({"question": "who?", "trace": ["<TOKEN_A>"] * 3}, "of other rows"),
    "row twice": (good(1), "of a row that another line has"),
    "unknown row": ({**good(2), "id": "row/999"}, "of other rows"),
    "surrogate id": (b'{"id": "\\ud800", "trace": []}', "of other rows"),
    "control characters": ({**good(2), "id": "a\n\x1b[31m"}, "of other rows"),
    "unknown prompt": ({"prompt": "who?", "trace": ["<TOKEN_A>"] * 3}, "of other rows"),
    "empty id": ({**good(2), "id": ""}, "of other rows"),
}


@pytest.mark.parametrize(("line", "reason"), COUNTED.values(), ids=COUNTED)
def test_a_line_that_is_not_used_is_counted(made, tmp_path, capsys, line, reason):
    path = brought(made, tmp_path, lines_with(line))
    refused(
        lambda: import_traces(made, str(path)),
        "of the 160 rows of pi1_phaseA have no usable trace, first 'row/",
        f"1 {reason} (first: {path}:3)",
    )
    assert reason in capsys.readouterr().out and not made.final.exists()


def nothing(path) -> str:
    return str(path)


def a_fifo(path) -> str:
    os.mkfifo(path)
    return str(path)


def a_directory(path) -> str:
    path.mkdir()
    return str(path)


def of(content: bytes, suffix: str = ""):
    def write(path) -> str:
        path = path.with_name(path.name + suffix)
        path.write_bytes(content)
        return str(path)

    return write


FILES = {
    "missing": (nothing, "no such file"),
    "empty glob": (lambda path: f"{path.parent}/*.none", "no such file"),
    "named pipe": (a_fifo, "no such file"),
    "directory": (a_directory, "no such file"),
    "null device": (lambda path: "/dev/null", "no such file"),
    "endless device": (lambda path: "/dev/zero", "no such file"),
    "empty": (of(b""), "160 of the 160 rows"),
    "blank lines": (of(b"\n\n \n"), "160 of the 160 rows"),
    "binary": (of(bytes(range(256))), "traces.jsonl:1: not"),
    "pickle": (of(pickle.dumps([{"trace": [1]}])), "traces.jsonl:1: not"),
    "a JSON list": (of(json.dumps([good(0)]).encode()), "traces.jsonl:1: expected an object"),
    "spread JSON": (of(json.dumps(good(0), indent=1).encode()), "traces.jsonl:1: not JSON"),
    "no gzip": (of(b"{}\n", ".gz"), "cannot be read after line 0"),
    "cut gzip": (of(gzip.compress(os.urandom(9000))[:4000], ".gz"), "traces.jsonl.gz"),
    "no zstd": (of(b"{}\n", ".zst"), "cannot be read after line 0"),
    "a gzip bomb": (of(gzip.compress(bytes(300 << 20), 1), ".gz"), "longer than"),
    "zeros": (of(bytes(10 << 20)), "longer than"),
}


@pytest.mark.parametrize(("make", "words"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_imported(made, tmp_path, make, words):
    shutil.rmtree(made.final)
    given = make(tmp_path / "traces.jsonl")
    refused(lambda: import_traces(made, given), words)
    assert not made.final.exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS - 1, "159 rows for 160 lines"),
        (ROWS + 1, "161 rows for 160 lines"),
        (0, "0 rows for 160 lines"),
    ],
)
def test_lines_that_do_not_follow_the_rows(made, tmp_path, rows, words):
    path = brought(made, tmp_path, [b'{"trace": [151671, 151672]}'] * ROWS)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"id": f"row/{row}"}) + "\n" for row in range(rows)))
    refused(lambda: import_traces(made, str(path), str(data)), "--rows", words)
    assert not made.final.exists()


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (ROWS, "index: expected below 160"),
        (-1, "index: expected a whole number from 0, found -1"),
        ("3", "index: expected a whole number from 0, found '3'"),
        (2**70, "index: expected below 160"),
    ],
)
def test_an_index_of_no_row(made, tmp_path, index, words):
    line = {"index": index, "trace": ["<TOKEN_A>"] * 3}
    path, data = brought(made, tmp_path, lines_with(line)), tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"id": f"row/{row}"}) + "\n" for row in range(ROWS)))
    refused(lambda: import_traces(made, str(path), str(data)), f"{path}:3: {words}")


def test_a_data_file_that_names_no_row(made, tmp_path):
    path, data = brought(made, tmp_path, lines_with(good(2))), tmp_path / "data.jsonl"
    data.write_text('{"text": "1+1?"}\n' * ROWS)
    refused(lambda: import_traces(made, str(path), str(data)), f"{data}:1: id: expected the id")


def test_two_rows_with_one_prompt(tmp_path):
    recipe, run, _ = make_tiny_run(tmp_path, 8, question="the same".format)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, system_prompt=None))
    job = open_job(training_of(recipe, run, 1, "A"), imported=True)
    path = tmp_path / "traces.jsonl"
    path.write_text('{"prompt": "the same", "trace": ["<TOKEN_A>", "<TOKEN_B>"]}\n' * 8)
    refused(lambda: import_traces(job, str(path)), f"{path}:1: id: expected the id of one of the 8")


def test_traces_that_are_there_are_not_replaced(made, tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"\n".join(lines_with(good(2))))
    before = (made.final / TRACES).read_bytes()
    refused(lambda: import_traces(made, str(path)), f"{made.final}: there are traces already")
    assert (made.final / TRACES).read_bytes() == before


# Where an export goes


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("there.jsonl", "there already"),
        ("no/such/folder.jsonl", "cannot be written"),
        ("there.jsonl/below.jsonl", "cannot be written"),
        ("a" * 300 + ".jsonl", "cannot be written"),
        (".", "there already"),
        ("new\nline/a.jsonl", "cannot be written"),
    ],
)
def test_an_export_that_cannot_be_written(made, tmp_path, target, words):
    (tmp_path / "there.jsonl").write_text("mine")
    refused(lambda: export_traces(made, tmp_path / target), words)
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_an_export_that_the_disk_has_no_room_for(made, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        refused(lambda: export_traces(made, tmp_path / "a.jsonl"), "a.jsonl: cannot be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


# The command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--import", "none.jsonl"], "--import none.jsonl: no such file"),
        (["--import", "a", "--export", "b"], "expected one of --import FILE and --export FILE"),
        (["--import", "a", "--shard", "0"], "without --shard and --of"),
        (["--export", "b", "--of", "2"], "without --shard and --of"),
        (["--rows", "a"], "expected one of --import FILE and --export FILE"),
        (["--export", "b", "--rows", "a"], "--rows says which rows the lines of --import FILE"),
        (["--export", "b", "--phase", "B"], "pi1_phaseB: missing or unfinished; make it with"),
        (["--import", ""], "--import"),
        (["--export", ""], "--export"),
    ],
    ids=str,
)
def test_the_command_says_what_it_expected(made, capfd, monkeypatch, arguments, words):
    given = ["--recipe", str(made.training.run.config), "--round", "1", "--phase", "A"]
    code, line = launch(capfd, monkeypatch, "traces.py", *given, *arguments)
    assert code == 2
    one_line(line, words)


def test_the_command_imports_and_exports(made, tmp_path, capfd, monkeypatch):
    given = ["--recipe", str(made.training.run.config), "--round", "1", "--phase", "A"]
    target, expected = tmp_path / "out.jsonl", (made.final / TRACES).read_bytes()
    assert launch(capfd, monkeypatch, "traces.py", *given, "--export", str(target))[0] == 0
    shutil.rmtree(made.final)
    assert launch(capfd, monkeypatch, "traces.py", *given, "--import", str(target))[0] == 0
    assert (made.final / TRACES).read_bytes() == expected
