"""A model in a process of its own: found, started, asked, stopped; what its death says."""

from pathlib import Path

import pytest

from abscot.common.errors import StageCrashed, UserError
from abscot.evaluation.ask_model import STOPPED, Asked
from abscot.evaluation.ask_process import ModelProcess
from kit.asked import serve_echo, serve_refusal


@pytest.fixture
def process():
    """serve -> a process; closed behind the test."""
    made = []

    def make(serve):
        made.append(ModelProcess(Asked("--model", "m", "abstract", None, Path()), serve))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_it_is_asked_again_after_a_stop_and_a_refusal(process):
    one = process(serve_echo)
    one.find()
    one.start()
    *pieces, told = one.ask("2+2?", 3)
    assert [p.text for p in pieces] == ["<TOKEN_A>", "m 3 2+2?"]
    waiting = one.ask("wait", 0)
    next(waiting)
    one.stop()
    assert [event.finish_reason for event in waiting] == [STOPPED]
    one.stop()  # behind the end of an answer: says nothing
    with pytest.raises(UserError, match="bad: expected better"):
        list(one.ask("bad", 0))
    assert list(one.ask("again", 0))[-1].answer.response == "again"
    log = one._log
    one.close()
    assert not log.exists() and not one._process.is_alive()


def test_a_mistake_is_told_before_anything_starts(process):
    with pytest.raises(UserError, match="--model m: expected another"):
        process(serve_refusal).find()


def test_its_death_says_its_last_line_and_keeps_what_it_printed(process):
    one = process(serve_echo)
    one.find()
    one.start()
    with pytest.raises(StageCrashed, match="engine of m ended .RuntimeError: no memory.") as crash:
        list(one.ask("die", 0))
    one.close()
    assert str(one._log) in str(crash.value) and "loading" in one._log.read_text()
    one._log.unlink()
