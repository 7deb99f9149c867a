"""A conversation: one question, a pipe, a terminal; its exit code, and Ctrl-C."""

import io
import json
import os
import signal
from types import SimpleNamespace

import pytest

from abscot.common.errors import UserError
from abscot.evaluation import ask
from abscot.evaluation.ask_model import STOPPED, Told
from abscot.evaluation.ask_text import ANSWER, Piece
from kit.asked import told


class Fake:
    """Answers with the question; Ctrl-C comes with the answer to `long`."""

    made = []

    def __init__(self, asked):
        self.asked, self.name, self.done, self.stopped = asked, asked.name, [], False
        self.made.append(self)

    def find(self):
        self.done.append("found")

    def start(self):
        assert all("found" in fake.done for fake in self.made)
        self.done.append("started")

    def ask(self, question, number):
        self.stopped = False
        if question == "bad":
            raise UserError("bad: expected better")
        for count in range(9 if question == "long" else 1):
            if self.stopped:
                yield Told(STOPPED, 1, 0.1, None)
                return
            yield Piece(ANSWER, f"[{self.name} {number} {question}]")
            if question == "long" and count == 0:
                os.kill(os.getpid(), signal.SIGINT)
        yield told(response=question)

    def stop(self):
        self.stopped = True

    def close(self):
        self.done.append("closed")


@pytest.fixture
def converse(monkeypatch, capsys):
    """(question, what stands on stdin, ..) -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(ask, "ModelProcess", Fake)
    monkeypatch.setattr(Fake, "made", [])

    def run(question, piped="", names=("final",), as_json=False, typed=None):
        rules = SimpleNamespace(check_name=lambda option, name: None)
        stdin = io.TextIOWrapper(io.BytesIO(piped if isinstance(piped, bytes) else piped.encode()))
        monkeypatch.setattr("sys.stdin", stdin)
        if typed is not None:
            monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
            monkeypatch.setattr("sys.stdout.isatty", lambda: True)
            monkeypatch.setattr("builtins.input", lambda prompt: typed.pop(0)())
        conversation = ask.Conversation(rules, list(names), thinking=True, as_json=as_json)
        code = ask.converse(conversation, question)
        assert all(fake.done == ["found", "started", "closed"] for fake in Fake.made)
        return code, *capsys.readouterr()

    return run


def test_one_question(converse):
    code, out, _ = converse("2+2?")
    assert code == 0 and out.startswith("[final 0 2+2?]\ntrace 4 + answer 5")
    assert [fake.asked.gpu_share for fake in Fake.made] == [1.0]


def test_each_line_of_a_pipe_is_a_question(converse):
    code, out, _ = converse(None, "one\n\n  two \n", as_json=True)
    assert code == 0
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["one", "two"]


def test_a_refused_question_does_not_end_the_others_and_the_exit_code_says_it(converse):
    code, out, err = converse(None, b"one\nbad\n\xff\ntwo\n")
    assert (code, err) == (
        2,
        "error: bad: expected better\nerror: the question is not UTF-8 text\n",
    )
    assert "[final 0 one]" in out and "[final 3 two]" in out
    code, out, _ = converse("bad", as_json=True)
    assert code == 2 and json.loads(out)["error"] == "bad: expected better"


def test_two_models_answer_one_after_the_other_with_half_the_memory_each(converse):
    code, out, _ = converse("2+2?", names=("final", "base"))
    assert code == 0 and out.index("final, abstract:") < out.index("base, thinking:")
    assert [fake.asked.gpu_share for fake in Fake.made] == [0.5, 0.5]
    assert [fake.asked.option for fake in Fake.made] == ["--model", "--beside"]


def test_ctrl_c_ends_the_answer_and_the_command(converse):
    code, out, _ = converse("long", names=("final", "base"))
    assert code == 130 and "stopped behind 1 tokens" in out and "base 0" not in out
    assert converse("long", as_json=True)[:2] == (130, "")


def test_at_a_terminal_one_goes_on_until_one_leaves(converse):
    def said(line):
        return lambda: line

    def pressed():
        raise KeyboardInterrupt

    def end():
        raise EOFError

    typed = [said("long"), pressed, said("bad"), said("two"), said("exit")]
    code, out, err = converse(None, typed=typed)
    assert code == 0 and typed == [] and "error: bad" in err
    assert "stopped" in out and "[final 2 two]" in out
    for leaving in (said(" "), end):
        assert converse(None, typed=[leaving])[0] == 0
