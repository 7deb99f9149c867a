"""What is said of a model's traces: used or not, in their order or not, and when it cannot be
said.
"""

import json

import pytest

from abscot.evaluation.statistics import summarise
from abscot.reporting import model_card, report, run_data, used
from abscot.reporting.blocks import to_markdown
from kit.synthetic_run import add_results, make_run, result_row


def summary(mode: str, right: int, problems: int = 200, flipped: int = 0):
    """The first `right` of the problems are right, but of them `flipped` ones are wrong, for
    as many others that are right.
    """
    correct = [i < right for i in range(problems)]
    for i in range(flipped):
        correct[i], correct[-1 - i] = False, True
    rows = [
        result_row(id=f"p{i}", correct=float(c), correct_any=float(c))
        for i, c in enumerate(correct)
    ]
    return summarise(rows, mode=mode, model="final", benchmark="world", round=1)


def said(right: int, problems: int = 200, **others) -> str | None:
    """others: mode without `abstract_` -> right answers, or the arguments of `summary`."""
    own, found = summary("abstract", right, problems), {}
    for name, asked in others.items():
        mode = name if name == "no_cot" else f"abstract_{name}"
        asked = asked if isinstance(asked, dict) else {"right": asked}
        found[mode] = used.Against.of(own, summary(mode, problems=problems, **asked))
    return used.Use(own, found).sentence()


def test_traces_that_are_used():
    assert (
        said(176, swapped=34)
        == "world: With another problem's trace accuracy falls from 88.0 to 17.0: the traces are "
        "used."
    )


def test_traces_that_are_not_used():
    assert (
        said(158, swapped={"right": 156, "flipped": 3})
        == "world: Accuracy stays at 79.0 (78.0 with another problem's trace): they are not used."
    )
    same = said(158, swapped=158, permuted=158)
    assert same.endswith(
        "they are not used. Shuffled, it stays at 79.0: their order does not matter."
    )


def test_traces_that_mislead():
    assert "rises from 40.0 to 60.0: the traces mislead" in said(80, swapped=120)


def test_too_few_problems_to_tell():
    found = said(16, problems=20, swapped={"right": 15, "flipped": 3})
    assert "Accuracy is 80.0, with another problem's trace 75.0 (difference +5.0 [-" in found
    assert found.endswith("too few problems to say whether the traces are used.")
    assert "too few problems" in said(3, problems=3, swapped=0)
    assert "too few problems" in said(3, problems=3, swapped=3)


def test_the_order_of_traces():
    assert said(176, swapped=34, permuted=100).endswith(
        "Shuffled, it falls to 50.0: they are read in their order."
    )
    assert (
        said(176, permuted=176)
        == "world: Accuracy is 88.0 with its own traces. Shuffled, it stays at 88.0: their order "
        "does not matter."
    )


def test_what_traces_add_to_answering_without_them():
    found = said(176, swapped=34, no_cot=32)
    assert (
        "Without a trace it is 16.0: the traces add 72.0 points, of which another problem's "
        in found
    )
    assert found.endswith("trace takes 99%.")
    assert said(160, swapped=160, no_cot=160).endswith(
        "Without a trace it is 80.0: nothing shows that traces add to it."
    )
    assert said(160, no_cot=20) is None


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    modes = ["abstract", "abstract_swapped", "abstract_permuted"]
    keys = {"eval.benchmarks": "[world]", "eval.modes": json.dumps(modes)}
    return make_run(tmp_path_factory.mktemp("used"), rounds=2, **keys)


def test_the_report_says_it_of_the_last_model_and_shows_all(asked):
    data = run_data.read(asked)
    text = to_markdown(report.blocks(data, {}))
    head = text[: text.index("## Results")]
    assert "With another problem's trace accuracy falls from " in head and "Shuffled, it " in head
    table = used.table(used.of_run(data))
    assert [row[0] for row in table.rows] == ["round1", "final"]
    assert table.columns[3:7] == ("own trace %", "another's %", "difference, points", "shuffled %")
    assert table.markdown() in text
    assert used.sentences(used.of_run(data), "final")[0] in model_card.card(data, "m", 100)


def test_the_modes_stand_in_the_results_in_their_order(asked):
    lines = report.table(asked).splitlines()
    assert [line.split()[0] for line in lines if " final " in line] == [
        "abstract",
        "abstract_swapped",
        "abstract_permuted",
    ]


def test_where_nothing_else_was_asked_nothing_is_said(tmp_path):
    run = make_run(tmp_path, rounds=1, **{"eval.modes": "[abstract]"})
    text = to_markdown(report.blocks(run_data.read(run), {}))
    assert "another" not in text[: text.index("## Training")]


def test_problems_that_only_one_mode_was_asked_do_not_count(tmp_path):
    run = make_run(tmp_path, rounds=1, **{"eval.benchmarks": "[world]"})
    add_results(run, "abstract", "final", "world", 1, problems=100, correct=1.0)
    add_results(run, "abstract_swapped", "final", "world", 1, problems=50, correct=0.0)
    (line,) = used.sentences(used.of_run(run_data.read(run)), "final")
    assert "falls from 100.0 to 0.0" in line
