"""The embedded world: its rows are right, and what its traces should say can be read."""

import dataclasses
import json
import re

import pytest

from abscot.common import files
from abscot.data import toy_base, toy_world
from abscot.data.toy_world import make_rows, states_of, write
from abscot.recipe.schema import WorldConfig
from tests.kit.corpus import refused

SMALL = WorldConfig(
    rows=200,
    heldout=50,
    hidden_size=64,
    num_layers=1,
    base_steps=1,
    base_thinking_rows=4,
    base_direct_rows=4,
)
TOLD = re.compile(r"(\d+): ([A-Z]) (?:and|trades places with) ([A-Z])(?: [a-z ]+)?\.")
WORKED = re.compile(r"(\d+): ([A-Z]) and ([A-Z]) swap, so it is under ([A-Z])\.")


def made(config: WorldConfig, seed: int = 0) -> tuple[list[dict], list[dict]]:
    rows, heldout = make_rows(config, seed)
    return list(rows), heldout


@pytest.fixture(scope="module")
def rows_and_heldout():
    return made(SMALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world") / "world"
    write(directory, SMALL, 0, None)
    return directory


def told(problem: str) -> tuple[str, tuple[frozenset[str], ...]]:
    """(start, the pair of cups of each swap) read from the words of a problem, by a reader that
    shares nothing with the writer.
    """
    first, *lines, last = problem.split("\n")
    start = re.fullmatch(r"[A-Z][a-z]+ puts a ball under cup ([A-Z])\.", first)[1]
    assert last == "Where is the ball?"
    swaps = [TOLD.fullmatch(line).groups() for line in lines]
    assert [int(number) for number, _, _ in swaps] == list(range(1, len(swaps) + 1))
    return start, tuple(frozenset(cups) for _, *cups in swaps)


def check_worked(config: WorldConfig, problem: str, cot: str, answer: str, states: str) -> None:
    """Plays the swaps with a row of cups, one of which has the ball under it."""
    at, swaps = told(problem)
    assert len(swaps) == config.swaps and all(len(cups) == 2 for cups in swaps)
    seen = ""
    for number, (line, cups) in enumerate(zip(cot.split("\n"), swaps, strict=True), 1):
        at = next(iter(cups - {at})) if at in cups else at
        seen += at
        said, *named, result = WORKED.fullmatch(line).groups()
        assert (int(said), frozenset(named), result) == (number, cups, at)
    assert seen == states and answer == at
    assert {*states, *told(problem)[0]} <= set(toy_world.CUPS[: config.cups])


@pytest.mark.parametrize("cups, swaps", [(6, 6), (3, 8), (26, 1), (26, 30)])
def test_every_row_is_worked_correctly(cups, swaps):
    config = dataclasses.replace(SMALL, cups=cups, swaps=swaps)
    rows, heldout = made(config)
    assert (len(rows), len(heldout)) == (SMALL.rows, SMALL.heldout)
    for row in rows:
        user, assistant = row["messages"]
        cot, answer = re.fullmatch(
            r"<think>\n(.+)\n</think>\n\n\\boxed\{([A-Z])\}", assistant["content"], re.DOTALL
        ).groups()
        check_worked(config, user["content"], cot, answer, row["states"])
    for row in heldout:
        check_worked(config, *(row[key] for key in ("problem", "cot", "answer", "states")))


def test_no_problem_comes_twice_and_none_held_out_is_trained_on():
    """In a world that is nearly used up, too, and in other words or with two cups named in the
    other order.
    """
    config = dataclasses.replace(SMALL, cups=3, swaps=2, heldout=6, rows=2000)
    rows, heldout = made(config)
    problems = [row["messages"][0]["content"] for row in rows] + [row["problem"] for row in heldout]
    assert len(set(problems)) == len(problems) == 2006
    assert not set(map(told, problems[:2000])) & set(map(told, problems[2000:]))


def test_no_constant_answer_scores_more_than_its_turn(rows_and_heldout):
    answers = [row["answer"] for row in rows_and_heldout[1]]
    assert max(map(answers.count, answers)) == -(-SMALL.heldout // SMALL.cups)


def test_rows_are_the_seeds(rows_and_heldout):
    assert made(SMALL) == rows_and_heldout
    assert made(SMALL, 1) != rows_and_heldout


def test_more_rows_are_the_same_rows_and_others(rows_and_heldout):
    assert made(dataclasses.replace(SMALL, rows=210))[0][:200] == rows_and_heldout[0]


@pytest.mark.parametrize(
    "keys", [{"rows": 5000, "heldout": 2}, {"heldout": 5000}, {"heldout": 50}], ids=str
)
def test_a_world_too_small_for_its_rows_is_refused(tmp_path, keys):
    config = dataclasses.replace(SMALL, cups=3, swaps=1, **keys)
    refused(lambda: write(tmp_path / "world", config, 0, None), "world.rows", "raise world.swaps")
    assert list(tmp_path.iterdir()) == []


def test_the_states_of_a_world_are_those_of_its_rows(written, rows_and_heldout):
    rows, heldout = rows_and_heldout
    states = states_of(written)
    assert states == {row["id"]: row["states"] for row in rows + heldout}
    assert len(states) == 250 and {"world-0", "world-199", "heldout-0", "heldout-49"} <= set(states)


@pytest.mark.parametrize(
    "line, words",
    {
        "no row": (b"[]", "TrainingRow"),
        "cut off": (b'{"id": "world-1", "dat', "not JSON"),
        "not text": (b"\xff\xfe", "not JSON"),
        "empty": (b"", "not JSON"),
        "of an older world": ({"states": None}, "states"),
        "no cups": ({"states": "12"}, "states"),
        "no states": ({"states": ""}, "states"),
        "more than we wrote": ({"more": 1}, "more"),
        "a row twice": ({"id": "world-0"}, "stands there twice"),
    }.values(),
    ids=str,
)
def test_states_of_a_world_that_was_changed_are_refused(written, tmp_path, line, words):
    lines = (written / "rows.jsonl").read_bytes().splitlines()
    lines[1] = line if isinstance(line, bytes) else json.dumps(json.loads(lines[1]) | line).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "heldout.jsonl").write_bytes((written / "heldout.jsonl").read_bytes())
    (tmp_path / files.DONE).touch()
    refused(lambda: states_of(tmp_path), "rows.jsonl:2:", words, "launch/world.py")


def test_states_of_an_unfinished_world_are_refused(tmp_path):
    refused(lambda: states_of(tmp_path), "missing or unfinished")


def test_an_interrupted_world_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(toy_base, "train_base", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "world", SMALL, 0, None)
    assert not (tmp_path / "world").exists()
    monkeypatch.undo()
    write(tmp_path / "world", SMALL, 0, None)
    assert files.is_done(tmp_path / "world")
    assert len((tmp_path / "world" / "rows.jsonl").read_text().splitlines()) == SMALL.rows
    assert (
        json.loads((tmp_path / "world" / "heldout.jsonl").read_text().splitlines()[0])["id"]
        == "heldout-0"
    )
