"""What a reader sees: plain text, beside each other, below each other, JSON."""

import io
import json
import re

import pytest
from rich.console import Console

from abscot.common.errors import UserError
from abscot.evaluation.ask_model import STOPPED, Told
from abscot.evaluation.ask_screen import Title, json_line, show, summary
from abscot.evaluation.ask_text import ANSWER, THOUGHT, TRACE, Piece
from abscot.method.vocab import token_name
from kit.asked import told

ONE = [Title("final", "abstract")]
TWO = [*ONE, Title("base", "thinking")]
TRACED = [
    (0, Piece(TRACE, "<TOKEN_A>")),
    (0, Piece(TRACE, "<TOKEN_BL>")),
    (0, Piece(ANSWER, "fo")),
    (0, Piece(ANSWER, "ur")),
    (0, told()),
]
IN_WORDS = [
    (1, Piece(THOUGHT, "two\nand two")),
    (1, Piece(ANSWER, "four")),
    (1, told(trace=())),
]


def shown(titles, events, **terminal) -> str:
    console = Console(file=io.StringIO(), **terminal)
    show(console, titles, iter(events))
    return console.file.getvalue()


def test_without_a_terminal_it_is_plain_text_and_lines_stay_whole():
    long = "word " * 60
    events = [*TRACED[:2], (0, Piece(ANSWER, long)), TRACED[-1]]
    assert (
        shown(ONE, events) == f"A BL\n{long}\ntrace 4 + answer 5 = 9 tokens, 0.50 s, 18 tokens/s\n"
    )


def test_without_a_terminal_two_answers_stand_one_below_the_other():
    assert shown(TWO, [*TRACED, *IN_WORDS], width=200).splitlines() == [
        "final, abstract:",
        "A BL",
        "four",
        "trace 4 + answer 5 = 9 tokens, 0.50 s, 18 tokens/s",
        "base, thinking:",
        "two",
        "and two",
        "four",
        "5 tokens, 0.50 s, 10 tokens/s",
    ]


@pytest.mark.parametrize("width, beside", [(99, False), (100, True)])
def test_in_a_wide_terminal_they_stand_beside_each_other(width, beside):
    terminal = dict(force_terminal=True, color_system=None, width=width, height=50)
    text = shown(TWO, [*TRACED, *IN_WORDS], **terminal)
    assert bool(re.search("A BL .*two", text)) is beside
    assert ("base, thinking:" in text) is not beside


def test_of_an_answer_that_is_longer_than_the_terminal_the_end_is_shown_then_all():
    lines = "\n".join(f"line {i}." for i in range(30))
    text = shown(
        TWO,
        [*TRACED, (1, Piece(ANSWER, lines)), IN_WORDS[-1]],
        force_terminal=True,
        color_system=None,
        width=100,
        height=12,
    )
    growing, whole = text[: text.rindex("final, abstract")], text[text.rindex("final, abstract") :]
    assert "line 29." in growing and "line 10." not in growing
    assert all(f"line {i}." in whole for i in range(30))


def test_codes_are_coloured_each_in_its_own():
    text = shown(ONE, TRACED, force_terminal=True, color_system="truecolor", width=80)
    colours = re.findall(r"\x1b\[1;38;2;([\d;]+)m(A|BL)", text)
    assert [name for _, name in colours] == ["A", "BL"] and len(dict(colours)) == 2
    assert token_name("<TOKEN_BL>") == "BL"


def test_what_would_steer_the_terminal_is_not_written():
    text = shown(ONE, [(0, Piece(ANSWER, "a\x1b[2Jb\x07\u200d[red]")), TRACED[-1]])
    assert "a�[2Jb�\u200d[red]" in text


def test_the_line_below_says_what_was_cut_and_what_was_stopped():
    made = told().answer
    assert summary(Told("length", 9, 0.5, made)).endswith(
        "cut at the limit (eval.max_answer_tokens)"
    )
    assert summary(Told(STOPPED, 7, 0.5, None)) == "stopped behind 7 tokens, 0.50 s, 14 tokens/s"


def test_a_question_that_is_refused_is_no_answer(capsys):
    assert shown(ONE, [(0, UserError("too long"))]) == ""
    assert capsys.readouterr().err == "error: too long\n"


def test_json_has_the_answer_as_evaluation_writes_it():
    line = json.loads(json_line("2+2?", TWO, [*TRACED, *IN_WORDS]))
    beside = line.pop("beside")
    times = {"seconds": 0.5, "tokens_per_s": 18.0}
    named = {"question": "2+2?", "model": "final", "mode": "abstract"}
    assert line == named | told().answer.model_dump() | times
    assert (beside["model"], beside["mode"], beside["n_total_tokens"]) == ("base", "thinking", 5)
    refused = json.loads(json_line("?", ONE, [(0, UserError("too long"))]))
    assert refused == {**named, "question": "?", "error": "too long"}
    assert json_line("?", ONE, [TRACED[0], (0, Told(STOPPED, 1, 0.1, None))]) is None
    assert json_line("?", TWO, TRACED) is None
