import json
import time

import pytest

from abscot.common.draws import rng
from abscot.data.toy_world import make_rows
from abscot.evaluation import scoring
from abscot.evaluation.scoring import (
    find_answer,
    normalise,
    score_all,
    token_f1,
    verify_all,
)
from abscot.recipe.load import ROOT
from abscot.recipe.schema import WorldConfig

EVAL = ROOT.parent / "shared" / "data" / "eval"
needs_data = pytest.mark.skipif(not EVAL.is_dir(), reason=f"no benchmark files in {EVAL}")


def rows_of(name):
    return [json.loads(line) for line in (EVAL / name).read_text().splitlines()]


def solutions(name):
    """(gold solutions, gold answers)"""
    if name == "math500":
        rows = rows_of("math500.jsonl")
        return [r["solution"] for r in rows], [r["answer"] for r in rows]
    rows = rows_of("gsm8k_test.jsonl")
    return [r["answer"] for r in rows], [r["answer"].rpartition("####")[2].strip() for r in rows]


@needs_data
@pytest.mark.parametrize("name", ["math500", "gsm8k"])
def test_gold_solutions_are_all_right(name):
    responses, golds = solutions(name)
    verdicts = score_all("math", responses, golds)
    assert [v.score_any for v in verdicts] == [1.0] * len(golds)
    assert {v.score for v in verdicts} == {1.0 if name == "math500" else 0.0}  # `#### N` is no box


@needs_data
@pytest.mark.parametrize("name", ["math500", "gsm8k"])
def test_shuffled_golds_are_almost_all_wrong(name):
    responses, golds = solutions(name)
    picked = rng("shuffle", name).permutation(len(golds))[:80]
    verdicts = score_all(
        "math", [responses[i] for i in picked], [golds[(i + 7) % len(golds)] for i in picked]
    )
    assert sum(v.score_any for v in verdicts) < 0.05 * len(picked)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 7$", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{a \boxed{8} b}", "8"),
        (r"\boxed{x \\} then", "x \\\\"),
    ],
)
def test_the_last_box(text, expected):
    assert find_answer(text) == (expected, "boxed")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"The answer is 4. \boxed{5}", ("5", "boxed")),
        ("3 + 4 = 7\n#### 7", ("7", "####")),
        ("So the final answer is 12.", ("12", "answer-is")),
        ("we get 3, then 1,234", ("1,234", "last-number")),
        (r"\boxed{3} and \boxed{unclosed", ("3", "earlier-box")),
        (r"7, so \boxed{unclosed {", ("7", "last-number")),
        ("I do not know", (None, "none")),
        ("", (None, "none")),
    ],
)
def test_fallbacks_are_named(text, expected):
    assert find_answer(text) == expected


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\$1{,}000", "1000"),
        ("12,345.50", "12345.5"),
        (r"50\%", "50 percent"),
        (r"1\,000", "1 000"),
        (r"\frac 1 2", r"\frac{1}{2}"),
        (r"\text{Evelyn}", "evelyn"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        ("90^\\circ", "90"),
        ("7.0", "7"),
    ],
)
def test_spelling_does_not_matter(a, b):
    assert normalise(a) == normalise(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("(1,234)", "(1234)"),
        ("1,23", "123"),
        ("10", "1"),
        ("-5", "5"),
        ("1.20.", "1.02"),
        ("12", "1 2"),
        ("0.5", r"0.5\%"),
    ],
)
def test_different_answers_stay_different(a, b):
    assert normalise(a) != normalise(b)


def test_equal_values_in_other_forms():
    cases = [
        (r"\frac{1}{2}", "0.5", True),
        ("x+1", "1+x", True),
        (r"\{1,2,3\}", r"\{3,2,1\}", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", True),
        ("(1,2)", "(2,1)", False),
        ("[1,2]", "(1,2)", False),
        ("2", "3", False),
    ]
    verdicts = score_all(
        "math", [rf"\boxed{{{answer}}}" for _, answer, _ in cases], [gold for gold, _, _ in cases]
    )
    assert [
        (gold, v.prediction, v.score == 1) for (gold, *_), v in zip(cases, verdicts, strict=True)
    ] == cases


@needs_data
def test_every_gold_of_math500_is_right_in_a_box():
    golds = [row["answer"] for row in rows_of("math500.jsonl")]
    verdicts = score_all("math", [rf"so \boxed{{{gold}}}." for gold in golds], golds)
    assert [v.score for v in verdicts] == [1.0] * 500
    assert verify_all([(gold, gold) for gold in golds[:100]]) == ["right"] * 100


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("1 2", "12", 0),
        (r"1\ 2", "12", 0),
        (r"1\,2", "12", 0),
        ("1~2", "12", 0),
        (r"1\text{ }2", "12", 0),
        ("12", "1 2", 0),
        (r"0.5\%", "0.5", 0),
        ("0.5 percent", "0.5", 0),
        (r"0.5\text{%}", "0.5", 0),
        ("0.5", r"0.5\%", 0),
        (r"50\%", "0.5", 1),
        (r"10\%", "10", 1),
        ("1,000", "1000", 1),
        ("5 cm", "5", 1),
    ],
)
def test_gaps_and_percents_count(answer, gold, score):
    assert score_all("math", [rf"\boxed{{{answer}}}"], [gold])[0].score == score


@pytest.mark.parametrize(
    ("response", "score", "score_any", "scorer"),
    [
        (r"so \boxed{7}", 1, 1, "exact"),
        ("The answer is 7.", 0, 1, "answer-is+exact"),
        ("#### 7", 0, 1, "####+exact"),
        (r"\boxed{7}, no, \boxed{8", 0, 1, "earlier-box+exact"),
        (r"\boxed{7}, no, \boxed{8}", 0, 0, "math-verify"),
        ("who knows", 0, 0, "no-answer"),
    ],
)
def test_what_stands_in_no_closed_box_counts_as_the_second_number_alone(
    response, score, score_any, scorer
):
    (verdict,) = score_all("math", [response], ["7"])
    assert (verdict.score, verdict.score_any, verdict.scorer) == (score, score_any, scorer)


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{" * 14_000 + "5" + "}" * 14_000,
        r"\boxed{" * 14_000,
        "{" * 50_000 + r"\boxed{5}" + "}" * 50_000,
        r"\boxed{5} \boxed{" + "{" * 100_000,
        r"\boxed" + " " * 100_000 + "{5}",
        "1," * 50_000,
        "#### " + "x" * 100_000,
        r"\boxed{a" + " " * 100_000 + "b}",
        r"\boxed{" + r"\text{" * 16_000 + "}" * 16_000 + "}",
        r"\boxed{" + "1," * 50_000 + "}",
        "\\" * 100_000 + r"\boxed{x}",
        "answer is " * 10_000,
    ],
    ids=[
        *("nested", "open", "braces", "cut", "blanks", "commas", "long"),
        *("gap", "texts", "pairs", "backslashes", "said"),
    ],
)
@pytest.mark.parametrize("scorer", ["math", "choice", "f1"])
def test_a_hundred_kilobytes_are_decided_in_a_moment(scorer, response):
    start = time.monotonic()
    score_all(scorer, [response], ["777"])
    assert time.monotonic() - start < 10  # most of it starts math-verify, where it is asked


HOSTILE = [
    r"\boxed{{{{{{",
    r"\boxed{10^{10^{10}}}",
    r"\boxed{" + "9" * 100_000 + "}",
    r"\boxed{" + "(" * 1000 + ")" * 1000 + "}",
    r"\boxed{\frac{\frac{\frac{1}{0}}{0}}{0}}",
    r"\boxed{(1,2) \cup [3, \infty)}",
    r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}",
    r"\boxed{5\text{ cm}} or \boxed{} or \boxed{37\%}",
    r"\boxed{\int_0^\infty \sum_{n=1}^{10^9} \prod_{k=1}^{10^9} x^{n k} dx}",
    r"\boxed{((((((9^9)^9)^9)^9)^9)^9)!}",
    r"\boxed{__import__('os').system('touch /tmp/owned')}",
    "\x00\ud7ff\u202e\U0010ffff \\boxed{\x00}",
    "",
    "$" * 5000,
]


def test_hostile_answers_end_in_time_and_are_wrong():
    start = time.monotonic()
    verdicts = score_all("math", HOSTILE, ["5"] * len(HOSTILE))
    assert [v.score for v in verdicts] == [0.0] * len(HOSTILE)
    assert time.monotonic() - start < 120


def test_a_comparison_past_its_limit_is_killed_and_the_next_one_works():
    hard, easy = (
        ("5", "10^{10^{10}} + " + "+".join(f"{i}^{{{i}!}}" for i in range(20, 40))),
        ("0.5", r"\frac{1}{2}"),
    )
    outcomes = verify_all([hard, easy], time_limit_s=3.0)
    assert outcomes[0] in ("timeout", "error", "wrong") and outcomes[1] == "right"


def test_a_worker_that_dies_counts_as_an_error(monkeypatch):
    verifier = scoring._Verifier()
    try:
        assert verifier.ask("1", "1", 10.0) == "right"
        verifier.process.kill()
        verifier.process.wait()
        assert verifier.ask("1", "1", 10.0) == "error"
        assert verifier.ask("1", "1", 10.0) == "right"
    finally:
        verifier.stop()


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        (r"\boxed{B}", "B", 1),
        (r"\boxed{\text{(B)}}", "B", 1),
        ("The answer is (C).", "B", 0),
        ("who knows", "B", 0),
        (r"\boxed{Bees}", "B", 0),
    ],
)
def test_choices(response, gold, score):
    assert score_all("choice", [response], [gold])[0].score == score


def test_f1_is_that_of_hotpotqa():
    assert token_f1("the Chief of Protocol", "Chief of Protocol") == 1.0
    assert token_f1("Chief", "Chief of Protocol") == pytest.approx(0.5)
    assert token_f1("yes it is", "yes") == 0.0
    assert token_f1("no one", "one") == pytest.approx(2 / 3)
    assert token_f1("no", "yes") == 0.0
    assert (
        score_all("f1", ["thinking..\nPyotr Ilyich"], ["Pyotr Ilyich"])[0].scorer == "last-line+f1"
    )


def test_the_toy_worlds_answers_stand_in_boxes():
    """Its prompts ask for none: the models know it from their training rows."""
    rows, _ = make_rows(WorldConfig(rows=20, heldout=20), seed=0)
    replies = [row["messages"][1]["content"].partition("</think>")[2] for row in rows]
    golds = [find_answer(reply).answer for reply in replies]
    assert [v.score for v in score_all("math", replies, golds)] == [1.0] * 20
