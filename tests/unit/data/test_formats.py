"""Raw rows: every format, every reason not to use one."""

import numpy as np
import pytest

from abscot.data.formats import draw_key
from kit.examples import chat, example, reason


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


SOURCE = "saumyamalik/OpenThoughts3-full-filtered-math-decontam-v2"


@pytest.mark.parametrize("parts", [["OpenThoughts3"], ["Python", "math-decontam"], [SOURCE]])
def test_a_source_is_kept_or_left_out_by_a_part_of_its_name(parts):
    row = chat("u:q", "a:<think>reasons</think>y", dataset_source=SOURCE)
    assert example(row, keep_sources=parts).source == SOURCE
    assert reason(row, drop_sources=parts) == "source_left_out"
    assert reason(row, keep_sources=["Openthoughts3"]) == "source_left_out"
    assert example(row, drop_sources=["openthoughts3", "OpenThoughts33"]).source == SOURCE


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"So it is \boxed{7}.", "7"),
        (r"First \boxed{1}, then \boxed{\frac{1}{2}} at last", r"\frac{1}{2}"),
        (r"a set \boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\text{a} } b", r"\text{a}"),
    ],
)
def test_a_solution_without_an_answer_column_answers_in_its_last_box(solution, answer):
    found = example({"problem": "p", "solution": solution}, "problem_solution")
    assert (found.cot, found.answer) == (solution, f"The answer is \\boxed{{{answer}}}.")
    given = {"problem": "p", "solution": solution, "answer": "8"}
    assert example(given, "problem_solution").answer == "The answer is \\boxed{8}."


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("no box at all", "no_boxed_answer"),
        (r"\boxed{7} and \boxed{8", "unclosed_boxed_answer"),
        (r"\boxed{7\}", "unclosed_boxed_answer"),
        (r"is it \boxed{ }?", "empty_answer"),
        ("\\boxed{" * 50_000, "unclosed_boxed_answer"),
        ("\\boxed{" + "{" * 400_000, "unclosed_boxed_answer"),
    ],
)
def test_a_solution_without_an_answer_is_not_used(solution, expected):
    row = {"problem": "p", "solution": solution, "answer": None}
    assert reason(row, "problem_solution", max_row_bytes=10**6) == expected


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("id", "x" * 1001, "id_too_long"),
        ("id", "a\nb", "id_not_printable"),
        ("id", "\x1b[31m", "id_not_printable"),
        ("id", "\ud800", "invalid_unicode"),
        ("id", True, "id_not_a_string"),
        ("id", 10**4000, "id_too_long"),
        ("dataset_source", "x" * 1001, "source_too_long"),
        ("dataset_source", "a\x00", "source_not_printable"),
        ("dataset_source", "\udfff", "invalid_unicode"),
        ("source", ["math"], "source_not_a_string"),
        ("source", 0, "source_not_a_string"),
    ],
)
def test_ids_and_sources_can_stand_in_a_line(column, value, expected):
    assert reason(chat("u:q", "a:<think>reasons</think>y", **{column: value})) == expected


def test_ids_numbers_become_text_and_none_becomes_a_hash_of_the_content():
    rows = [chat(f"u:q{i}", "a:<think>reasons</think>y") for i in (1, 1, 2)]
    assert example({**rows[0], "id": 12}).id == "12"
    one, same, other = (example(row).id for row in rows)
    assert one == same != other and one == example(rows[0], system_prompt="Other.").id


def test_draw_keys_depend_on_seed_and_id_alone():
    assert draw_key(0, "a") == draw_key(0, "a") != draw_key(1, "a")
    keys = np.array([draw_key(3, f"row/{i}") for i in range(4000)]) / 2**63
    assert np.abs(np.quantile(keys, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.03  # uniform
