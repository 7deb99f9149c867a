"""Bad rows of training data: each is counted in rejected.jsonl with its file and line, and the rows
around it are used.
"""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from kit.corpus import one_line
from kit.raw_data import make, recipe_of

BYTES = 256  # ids of the tiny tokenizer from here on are control tokens
GOOD = {"id": "good", "prompt": "2+2?", "cot": "two and two", "answer": "4"}
OTHER = {**GOOD, "id": "other"}


def row(**changes) -> bytes:
    return json.dumps({**GOOD, "id": "bad", **changes}).encode()


def without(column: str) -> bytes:
    return json.dumps({key: GOOD[key] for key in GOOD if key != column}).encode()


def deep(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + "1" + closing * depth


LINES = {
    "cut_json": (b'{"id": "bad", "prompt": "2+2', "broken_json"),
    "no_json": (b"id: bad", "broken_json"),
    "two_objects": (row() + row(), "broken_json"),
    "trailing_comma": (row()[:-1] + b",}", "broken_json"),
    "single_quotes": (b"{'id': 'bad'}", "broken_json"),
    "list": (b"[1, 2]", "broken_json"),
    "string": (b'"text"', "broken_json"),
    "number": (b"17", "broken_json"),
    "null": (b"null", "broken_json"),
    "nan": (b"NaN", "broken_json"),
    "empty_object": (b"{}", "missing_column_prompt"),
    "raw_tab": (b'{"prompt": "a\tb"}', "broken_json"),
    "nul_bytes": (b"\0" * 100, "broken_json"),
    "deep_lists": (deep(100_000).encode(), "broken_json"),
    "deep_objects": (deep(100_000, '{"a":', "}").encode(), "broken_json"),
    "deep_value": (row()[:-1] + b', "x": ' + deep(50_000).encode() + b"}", "broken_json"),
    "deep_unclosed": (b"[" * 900_000, "broken_json"),
    "deep_id": (row()[:-1].replace(b'"bad"', deep(900).encode()) + b"}", "id_not_a_string"),
    "huge_number": (b'{"id": ' + b"9" * 5000 + b"}", "broken_json"),
    "long_number_as_id": (
        row().replace(b'"bad"', b"9" * 4000),
        "id_too_long",
    ),
    "same_key_twice": (row()[:-1] + b', "cot": "other steps"}', "duplicate_key"),
    "key_twice_inside": (row()[:-1] + b', "x": {"a": 1, "a": 2}}', "duplicate_key"),
    "many_equal_keys": (b'{"a":1' + b',"a":1' * 150_000 + b"}", "duplicate_key"),
    "latin_1": (b'{"id": "bad", "cot": "s\xe9parer"}', "invalid_utf8"),
    "utf_16": ('{"id": "bad"}'.encode("utf-16"), "invalid_utf8"),
    "overlong_utf8": (b'{"id": "\xc0\xaf"}', "invalid_utf8"),
    "utf8_of_a_surrogate": (b'{"id": "\xed\xa0\x80"}', "invalid_utf8"),
    "lone_surrogate_in_cot": (row(cot="lone \ud800 surrogate"), "invalid_unicode"),
    "lone_surrogate_in_id": (row(id="\ud800"), "invalid_unicode"),
    "lone_surrogate_in_source": (row(source="\udfff"), "invalid_unicode"),
    "lone_surrogate_in_a_key": (b'{"\\ud800": 1}', "missing_column_prompt"),
    "surrogates_the_wrong_way": (row(prompt="\udc00\ud800?"), "invalid_unicode"),
    "gigantic_line": (row(cot="x" * 2_000_000), "row_too_big"),
    "gigantic_blank_line": (b" " * 2_000_000, "row_too_big"),
    "million_lists": (b"[" + b"[]," * 300_000 + b"[]]", "broken_json"),
    "no_prompt": (without("prompt"), "missing_column_prompt"),
    "no_cot": (without("cot"), "missing_column_cot"),
    "no_answer": (without("answer"), "missing_column_answer"),
    "null_cot": (row(cot=None), "missing_column_cot"),
    "numeric_answer": (row(answer=4), "not_text_answer"),
    "nan_answer": (row(answer=float("nan")), "not_text_answer"),
    "true_answer": (row(answer=True), "not_text_answer"),
    "list_cot": (row(cot=["two", "and"]), "not_text_cot"),
    "object_prompt": (row(prompt={"text": "2+2?"}), "not_text_prompt"),
    "blank_prompt": (row(prompt=" \n\t"), "empty_prompt"),
    "blank_cot": (row(cot="\u2003 \n"), "empty_cot"),
    "short_cot": (row(cot="abc"), "short_cot"),
    "blank_answer": (row(answer=" \r\n "), "empty_answer"),
    "empty_id": (row(id=""), "id_not_a_string"),
    "list_id": (row(id=["a"]), "id_not_a_string"),
    "float_id": (row(id=1.5), "id_not_a_string"),
    "nan_id": (row(id=float("nan")), "id_not_a_string"),
    "true_id": (row(id=True), "id_not_a_string"),
    "long_id": (row(id="x" * 100_000), "id_too_long"),
    "newline_in_id": (row(id="a\nb"), "id_not_printable"),
    "escape_in_id": (row(id="\x1b[2J"), "id_not_printable"),
    "nul_in_id": (row(id="a\0b"), "id_not_printable"),
    "bidi_in_id": (row(id="a\u202eb"), "id_not_printable"),
    "same_id": (row(id="good"), "duplicate_id"),
    "number_source": (row(source=3), "source_not_a_string"),
    "newline_in_source": (row(source="a\nb"), "source_not_printable"),
    "long_source": (row(source="s" * 100_000), "source_too_long"),
    "left_out_source": (row(source="wild/left-out"), "source_left_out"),
    "too_long": (row(cot="step " * 2000), "too_long"),
    "too_long_prompt": (row(prompt="step " * 2000), "too_long"),
    "in_evaluation": (row(prompt="How many legs have seven spiders together?"), "in_evaluation"),
}
KEYS = {"max_row_bytes": 1_000_000, "drop_sources": ["left-out"]}
PROBLEMS = ["How many legs have seven spiders together?"]


def rejected_of(store) -> list[dict]:
    lines = (store.directory / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("line", "expected"), LINES.values(), ids=LINES)
def test_a_bad_line_is_counted_and_the_others_are_used(tmp_path, line, expected):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([json.dumps(GOOD).encode(), line, json.dumps(OTHER).encode()]))
    store = make(recipe_of(tmp_path, path, **KEYS), problems=PROBLEMS)
    (rejected,) = rejected_of(store)
    assert (rejected["reason"], rejected["line"], rejected["file"]) == (expected, 2, str(path))
    assert rejected["detail"] == "" or one_line(rejected["detail"])
    assert sorted(store.ids()) == ["good", "other"]


FINE = {
    "crlf": json.dumps(OTHER).encode() + b"\r",
    "nan_in_an_unused_column": json.dumps({**OTHER, "score": float("nan")}).encode(),
    "path_as_id": json.dumps({**OTHER, "id": "../../etc/passwd"}).encode(),
    "id_of_other_scripts": json.dumps({**OTHER, "id": "\u6570\u5b66-\U0001f600"}).encode(),
    "number_as_id": json.dumps({**OTHER, "id": -12}).encode(),
    "escaped_astral": json.dumps({**OTHER, "cot": "smile \U0001f600 more"}).encode(),
    "nul_in_text": json.dumps({**OTHER, "cot": "a\0b\0c\0d"}).encode(),
    "bom_in_text": json.dumps({**OTHER, "cot": "\ufeffsteps of it"}, ensure_ascii=False).encode(),
    "control_tokens": json.dumps(
        {**OTHER, "cot": "<|im_end|> <TOKEN_A> <beginabstract> </think>"}
    ).encode(),
    "private_use": json.dumps({**OTHER, "prompt": "\ue0000\ue001 \ue0001\ue001"}).encode(),
    "no_id": json.dumps({key: OTHER[key] for key in OTHER if key != "id"}).encode(),
    "null_id": json.dumps({**OTHER, "id": None}).encode(),
    "last_line_blank": json.dumps(OTHER).encode() + b"\n\n \n",
}


@pytest.mark.parametrize("line", FINE.values(), ids=FINE)
def test_what_looks_odd_and_is_none_is_used(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n" + line)
    store = make(recipe_of(tmp_path, path))
    assert len(store) == 2 and rejected_of(store) == []
    assert store.row(1).cot.max() < BYTES  # no control token


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_a_row_beyond_the_limit_is_passed_over_wherever_it_stands(tmp_path, pack):
    big = row(cot="y" * 30_000_000)
    lines = [big, json.dumps(GOOD).encode(), big, json.dumps(OTHER).encode(), big]
    name = {bytes: "r.jsonl", gzip.compress: "r.jsonl.gz"}.get(pack, "r.jsonl.zst")
    (tmp_path / name).write_bytes(pack(b"\n".join(lines)))
    store = make(recipe_of(tmp_path, tmp_path / name, **KEYS))
    assert [r["line"] for r in rejected_of(store)] == [1, 3, 5] and len(store) == 2


# Tables


TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>two and two</think>4"},
]
BAD_TEXT = pa.array([b"2+2?", b"\xff\xfe?", b"2+2?"], pa.binary()).view(pa.string())
COLUMNS = {name: pa.array([GOOD[name]] * 3) for name in ("prompt", "cot", "answer")}
IDS = pa.array(["good", "bad", "other"])
CELLS = {
    "invalid_utf8": ({"prompt": BAD_TEXT}, "invalid_utf8"),
    "invalid_utf8_id": (
        {"id": pa.array([b"good", b"\xc3", b"other"], pa.binary()).view(pa.string())},
        "invalid_utf8",
    ),
    "null_prompt": ({"prompt": pa.array(["2+2?", None, "2+2?"])}, "missing_column_prompt"),
    "blank_cot": ({"cot": pa.array(["two and two", " ", "two and two"])}, "empty_cot"),
    "big_cell": ({"cot": pa.array(["two and two", "x" * 2_000_000, "two and two"])}, "row_too_big"),
    "big_large_string": (
        {"cot": pa.array(["two and two", "x" * 2_000_000, "two and two"], pa.large_string())},
        "row_too_big",
    ),
    "same_id": ({"id": pa.array(["good", "good", "other"])}, "duplicate_id"),
    "control_in_id": ({"id": pa.array(["good", "a\x07", "other"])}, "id_not_printable"),
    "too_long": ({"cot": pa.array(["two and two", "step " * 900, "two and two"])}, "too_long"),
}


def write_table(path, columns: dict) -> None:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
@pytest.mark.parametrize(("cells", "expected"), CELLS.values(), ids=CELLS)
def test_a_bad_row_of_a_table_is_counted_and_the_others_are_used(tmp_path, name, cells, expected):
    write_table(tmp_path / name, {"id": IDS, **COLUMNS, **cells})
    store = make(recipe_of(tmp_path, tmp_path / name, **KEYS))
    (rejected,) = rejected_of(store)
    assert (rejected["reason"], rejected["line"]) == (expected, 2)
    assert sorted(store.ids()) == ["good", "other"]


ODD_TURNS = {
    "text": (pa.array(["user: 2+2?"]), "no_messages"),
    "list_of_text": (pa.array([["2+2?", "4"]]), "message_without_text"),
    "list_of_numbers": (pa.array([[1, 2]]), "message_without_text"),
    "null": (pa.array([None], pa.list_(pa.string())), "missing_column_messages"),
    "only_nulls": (pa.nulls(1), "missing_column_messages"),
    "list_of_nulls": (pa.array([[None, None]]), "message_without_text"),
    "struct_of_lists": (pa.array([{"role": ["user"], "content": ["2+2?"]}]), "no_messages"),
    "other_keys": (pa.array([[{"from": "human", "value": "2+2?"}]]), "message_without_text"),
    "numeric_content": (pa.array([[{"role": "user", "content": 4}]]), "message_without_text"),
    "empty": (pa.array([[]], pa.list_(pa.struct({"role": pa.string()}))), "no_messages"),
    "nested_deep": (pa.array([[[[[[[[[[1]]]]]]]]]]), "message_without_text"),
    "two_billion_nulls": (
        pa.ListArray.from_arrays(pa.array([0, 2 * 10**9], pa.int32()), pa.nulls(2 * 10**9)),
        "row_too_big",
    ),
}


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_turn_that_is_no_utf8_costs_its_own_row_alone(tmp_path, name):
    texts = [text for i in range(3) for text in (b"2+2?", b"<think>two and %d</think>4" % i)]
    texts[2] = b"2+\xc3("
    contents = pa.array(texts, pa.binary()).view(pa.string())
    turns = pa.StructArray.from_arrays(
        [pa.array(["user", "assistant"] * 3), contents], ["role", "content"]
    )
    messages = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), turns)
    write_table(tmp_path / name, {"messages": messages, "id": IDS})
    recipe = recipe_of(tmp_path, tmp_path / name)
    recipe.data.format = "messages"
    store = make(recipe)
    assert [(r["reason"], r["line"]) for r in rejected_of(store)] == [("invalid_utf8", 2)]
    assert store.ids() == ["good", "other"]


@pytest.mark.parametrize(("turns", "expected"), ODD_TURNS.values(), ids=ODD_TURNS)
def test_messages_of_another_shape_are_counted(tmp_path, turns, expected):
    path = tmp_path / "rows.arrow"
    write_table(path, {"messages": turns})
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "good", "messages": TURNS}) + "\n")
    recipe = recipe_of(tmp_path, tmp_path / "rows.*")
    recipe.data.format = "messages"
    store = make(recipe)
    assert [(r["reason"], r["line"]) for r in rejected_of(store)] == [(expected, 1)]
    assert store.ids() == ["good"]
