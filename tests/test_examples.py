"""Raw rows -> examples: adapters, filters, decontamination, and every kind of file and bad row."""

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
from abscot.data.decontaminate import Decontaminator
from abscot.data.formats import draw_key, read_example
from abscot.data.sources import Rejected, Unit
from abscot.recipe.schema import DataConfig

CONFIG = DataConfig(
    format="prompt_cot_answer", min_cot_chars=5, system_prompt="Think.", max_row_bytes=10_000
)


def example(record, format="messages", problems=(), **changes):
    return read_example(
        record, replace(CONFIG, format=format, **changes), Decontaminator(problems, 0.5)
    )


def chat(*turns, **columns) -> dict:
    """Turns as 'u:text', 's:text', 'a:text'."""
    roles = {"u": "user", "s": "system", "a": "assistant", "t": "tool"}
    return {"messages": [{"role": roles[t[0]], "content": t[2:]} for t in turns], **columns}


def reason(record, format="messages", **changes) -> str:
    with pytest.raises(Rejected) as caught:
        example(record, format, **changes)
    return caught.value.reason


def test_messages_split_at_think_and_get_the_system_prompt():
    found = example(
        chat("u:2+2?", "a:<think>\n2+2\n=4\n</think>\n\n4 ", id="r1", dataset_source="math")
    )
    assert (found.id, found.cot, found.answer, found.source) == ("r1", "2+2\n=4", "4", "math")
    assert found.messages == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "2+2?"},
    ]


def test_a_row_keeps_its_own_system_prompt_and_the_recipe_may_have_none():
    assert (
        example(chat("s:Mine.", "u:q", "a:<think>because</think>y")).messages[0]["content"]
        == "Mine."
    )
    assert [
        m["role"]
        for m in example(chat("u:q", "a:<think>because</think>y"), system_prompt=None).messages
    ] == ["user"]


def test_several_turns_train_the_last_and_take_the_earlier_thoughts_out():
    found = example(
        chat("u:a?", "a:<think>secret</think>\nfirst", "u:b?", "a:<think>reason</think>second")
    )
    assert [m["content"] for m in found.messages] == ["Think.", "a?", "first", "b?"]
    assert (found.cot, found.answer) == ("reason", "second")


def test_gsm8k_loses_the_calculator_and_boxes_the_result():
    answer = "Half is 48/2 = <<48/2=24>>24.\nTogether <<48+24=72>>72.\n#### 1,072"
    found = example({"question": "How many?", "answer": answer}, "gsm8k")
    assert found.cot == "Half is 48/2 = 24.\nTogether 72."
    assert found.answer == "The answer is \\boxed{1072}."


def test_prompt_cot_answer_and_problem_solution():
    found = example({"prompt": "p", "cot": "  long enough ", "answer": "y\n"}, "prompt_cot_answer")
    assert (found.messages[-1]["content"], found.cot, found.answer) == ("p", "long enough", "y")
    found = example(
        {"problem": "p", "solution": "long enough", "answer": "\\frac{1}{2}"}, "problem_solution"
    )
    assert (found.cot, found.answer) == ("long enough", "The answer is \\boxed{\\frac{1}{2}}.")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("just an answer", "no_think"),
        ("<think> \n </think>answer", "empty_think"),
        ("<think>never ends", "unclosed_think"),
        ("no start</think>answer", "unopened_think"),
        ("<think>a<think>b</think>c</think>answer", "nested_think"),
        ("<think>a</think>b</think>answer", "nested_think"),
        ("</think>a<think>answer", "text_before_think"),
        ("Well, <think>reasons</think>answer", "text_before_think"),
        ("<think>reasons</think> \n", "empty_answer"),
        ("<think>four</think>answer", "short_cot"),
        ("<think>lone \ud800 surrogate</think>answer", "invalid_unicode"),
        ("<think>" + "x" * 10_000 + "</think>answer", "row_too_big"),
    ],
)
def test_bad_thoughts_and_answers_are_named(content, expected):
    assert reason(chat("u:q", "a:" + content)) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": []}, "no_messages"),
        ({"messages": "text"}, "no_messages"),
        ({"messages": [{"role": "user", "content": None}]}, "message_without_text"),
        ({"messages": ["user"]}, "message_without_text"),
        (chat("u:q", "t:tool says", "a:<think>reasons</think>y"), "unknown_role"),
        (chat("u:q"), "last_turn_not_assistant"),
        (chat("a:<think>reasons</think>y"), "no_user_turn"),
        (chat("u: ", "a:<think>reasons</think>y"), "empty_prompt"),
        (chat("u:q", "a:<think>reasons</think>y", id=["list"]), "id_not_a_string"),
        (chat("u:q", "a:<think>reasons</think>y", id=1.5), "id_not_a_string"),
        (chat("u:q", "a:<think>reasons</think>y", id=""), "id_not_a_string"),
        (chat("u:q", "a:<think>reasons</think>y", dataset_source=3), "source_not_a_string"),
        ({"conversation": []}, "missing_column_messages"),
    ],
)
def test_bad_messages_rows_are_named(record, expected):
    assert reason(record) == expected


def test_bad_rows_of_the_other_formats_are_named():
    row = {"prompt": "p", "cot": "long enough", "answer": "y"}
    assert reason({**row, "answer": None}, "prompt_cot_answer") == "missing_column_answer"
    assert reason({**row, "answer": 7}, "prompt_cot_answer") == "not_text_answer"
    assert reason({**row, "cot": " "}, "prompt_cot_answer") == "empty_cot"
    assert reason({"question": "q", "answer": "steps only"}, "gsm8k") == "gsm8k_without_result"
    assert reason({"question": "q", "answer": "some steps\n#### "}, "gsm8k") == "empty_answer"
    assert (
        reason({"problem": "p", "solution": "long enough", "answer": " "}, "problem_solution")
        == "empty_answer"
    )


def test_sources_are_kept_or_left_out():
    row = chat("u:q", "a:<think>reasons</think>y", dataset_source="wild")
    assert reason(row, drop_sources=["wild"]) == "source_left_out"
    assert reason(row, keep_sources=["math"]) == "source_left_out"
    assert example(row, keep_sources=["wild"]).source == "wild"


def test_ids_numbers_become_text_and_none_becomes_a_hash_of_the_content():
    rows = [chat(f"u:q{i}", "a:<think>reasons</think>y") for i in (1, 1, 2)]
    assert example({**rows[0], "id": 12}).id == "12"
    one, same, other = (example(row).id for row in rows)
    assert one == same != other and one == example(rows[0], system_prompt="Other.").id


def test_draw_keys_depend_on_seed_and_id_alone():
    assert draw_key(0, "a") == draw_key(0, "a") != draw_key(1, "a")
    keys = np.array([draw_key(3, f"row/{i}") for i in range(4000)]) / 2**63
    assert np.abs(np.quantile(keys, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.03  # uniform


# Decontamination

PROBLEM = (
    "What is the smallest positive perfect cube that can be written as the sum of three "
    "consecutive integers?"
)


def test_evaluation_problems_are_found_exact_wrapped_and_half():
    index = Decontaminator([PROBLEM, "Compute $1+1$."], 0.5)
    assert index.overlap([PROBLEM.upper().replace("?", " ?!")]).startswith("equals")
    assert index.overlap(["compute 1 + 1"]).startswith("equals")  # under 5 words: only exact
    assert not index.overlap(["Compute 1+1 and then 2"])
    assert "14 of 14" in index.overlap([f"Solve this carefully.\n{PROBLEM}\nShow your work."])
    words = PROBLEM.split()
    assert index.overlap([" ".join(words[:11])]).startswith("7 of 14")  # at the limit
    assert not index.overlap([" ".join(words[:10])])
    assert (
        reason(chat(f"u:{PROBLEM}", "a:<think>reasons</think>27"), problems=[PROBLEM])
        == "in_evaluation"
    )


def test_decontamination_reads_user_turns_and_not_the_system_prompt():
    row = chat(f"s:{PROBLEM}", "u:q", "a:<think>reasons</think>27")
    assert example(row, problems=[PROBLEM]).cot == "reasons"


# Files

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
        path.write_bytes(
            packed(LINES[:half]) + packed(LINES[half:])
        )  # two members, as after `cat a.gz b.gz`
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
    assert (
        records(path, max_row_bytes=10**6)[0][1].reason == "broken_json"
    )  # nested too deep to parse


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
    with pytest.raises(UserError, match="folder.jsonl: cannot be read: Is a directory"):
        sources.find(config(tmp_path / "folder.jsonl"))
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="rows.csv: unknown kind of file; known: .jsonl"):
        sources.find(config(tmp_path / "rows.csv"))
    (tmp_path / "b.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match="b.parquet: not a readable Parquet file"):
        sources.find(config(tmp_path / "b.parquet"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_without_the_columns_is_named_at_once(tmp_path, name):
    data = config(write(tmp_path / name))
    with pytest.raises(
        UserError,
        match=f"{name}: no column messages; it has prompt, cot, answer, id, unused; .*data.format",
    ):
        list(sources.read(sources.find(data)[0], data, ("messages",)))
