r"""The embedded world: a ball under one of several cups, which change places. From a seed:
problems with worked steps, a tokenizer and a small hybrid base.

    Mia puts a ball under cup C.
    1: A and D swap.
    2: C and B change places.
    3: B trades places with F.
    Where is the ball?
    -> <think>
       1: A and D swap, so it is under C.
       2: C and B swap, so it is under B.
       3: B and F swap, so it is under F.
       </think>

       \boxed{F}

Each step needs the one before it: a small model that answers at once guesses, one that thinks
in words is right, and what a trace carries can be told apart from both. Rows are shaped like
Dolci-Think-SFT, with a column `states` beside: the cup after each swap, here "CBF".
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import StringConstraints

from abscot.common import files, json_text
from abscot.common.draws import rng
from abscot.common.errors import UserError, shown
from abscot.common.log import log
from abscot.common.record import Record
from abscot.recipe.schema import WorldConfig

NAMES = ("Mia", "Tom", "Ana", "Ben", "Eva", "Sam", "Zoe", "Max")
CUPS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SWAPS = (
    "{} and {} swap",
    "{} and {} change places",
    "{} trades places with {}",
    "{} and {} are switched",
)
MAX_ATTEMPTS = 200  # at a problem that is new
MEND = "remove the directory and make it again: python launch/world.py"

Swap = tuple[int, int]  # the numbers of two cups


@dataclass(frozen=True, slots=True)
class Problem:
    text: str
    cot: str
    states: str  # the cup after each swap
    puzzle: tuple  # start and swaps, whatever the words and the order of two cups

    @property
    def answer(self) -> str:
        return self.states[-1]


def make_rows(config: WorldConfig, seed: int) -> tuple[Iterator[dict], list[dict]]:
    """(training rows, made one by one; held-out rows of id, problem, cot, answer, states).

    No problem occurs twice, and no held-out start and swaps occur in training, whatever the words.
    The answers take turns, so that always naming the same cup scores 1 / cups. Raises UserError,
    the training rows at the first that cannot be made, where the world is too small.
    """
    problems = _problems(config, seed)
    heldout = [_heldout_row(number, next(problems)) for number in range(config.heldout)]
    return (_dolci_row(number, problem) for number, problem in enumerate(problems)), heldout


def _problems(config: WorldConfig, seed: int) -> Iterator[Problem]:
    """The held-out problems, then those of training."""
    told, heldout_puzzles = set(), set()
    wanted = config.heldout + config.rows
    for number in range(wanted):
        is_heldout = number < config.heldout
        for attempt in range(MAX_ATTEMPTS):
            problem = _drawn(rng("world", seed, number, attempt), number % config.cups, config)
            if problem.text not in told and (is_heldout or problem.puzzle not in heldout_puzzles):
                break
        else:
            raise UserError(
                f"world.rows: only {number:,} different problems found of {wanted:,} (rows and "
                "heldout); raise world.swaps or world.cups, or ask for fewer"
            )
        told.add(problem.text)
        if is_heldout:
            heldout_puzzles.add(problem.puzzle)
        yield problem


def _drawn(draw: np.random.Generator, answer: int, config: WorldConfig) -> Problem:
    """A problem that ends at cup number `answer`: from there the swaps lead back to the start."""
    first = draw.integers(config.cups, size=config.swaps)
    second = (first + draw.integers(1, config.cups, size=config.swaps)) % config.cups
    wordings = draw.integers(len(SWAPS), size=config.swaps).tolist()
    name = NAMES[draw.integers(len(NAMES))]
    swaps = list(zip(first.tolist(), second.tolist(), strict=True))
    cups = [answer]
    for swap in reversed(swaps):
        cups.append(_after(swap, cups[-1]))
    start, *states = reversed(cups)
    told, worked = [f"{name} puts a ball under cup {CUPS[start]}."], []
    for number, ((a, b), wording, at) in enumerate(zip(swaps, wordings, states, strict=True), 1):
        told.append(f"{number}: {SWAPS[wording].format(CUPS[a], CUPS[b])}.")
        worked.append(f"{number}: {CUPS[a]} and {CUPS[b]} swap, so it is under {CUPS[at]}.")
    return Problem(
        "\n".join([*told, "Where is the ball?"]),
        "\n".join(worked),
        "".join(CUPS[at] for at in states),
        (start, *(min(swap) * config.cups + max(swap) for swap in swaps)),
    )


def _after(swap: Swap, at: int) -> int:
    """Where the ball lies that lay under cup number `at`."""
    a, b = swap
    return b if at == a else a if at == b else at


def _heldout_row(number: int, problem: Problem) -> dict:
    return {
        "id": f"heldout-{number}",
        "problem": problem.text,
        "cot": problem.cot,
        "answer": problem.answer,
        "states": problem.states,
    }


def _dolci_row(number: int, problem: Problem) -> dict:
    reply = f"<think>\n{problem.cot}\n</think>\n\n\\boxed{{{problem.answer}}}"
    return {
        "id": f"world-{number}",
        "dataset_source": "world",
        "messages": [
            {"role": "user", "content": problem.text},
            {"role": "assistant", "content": reply},
        ],
        "states": problem.states,
    }


class Message(Record):
    role: Literal["user", "assistant"]
    content: str


class TrainingRow(Record):
    """A line of rows.jsonl."""

    id: str
    dataset_source: Literal["world"]
    messages: list[Message]
    states: Annotated[str, StringConstraints(pattern="^[A-Z]+$")]


class HeldoutRow(Record):
    """A line of heldout.jsonl."""

    id: str
    problem: str
    cot: str
    answer: str
    states: Annotated[str, StringConstraints(pattern="^[A-Z]+$")]


def states_of(directory: Path) -> dict[str, str]:
    """id -> the cup after each swap, a letter a swap ("CBF"), of training rows and held-out
    problems of the world in `directory`.

    Raises MissingInput where the world is unfinished, UserError with file and line for one that is
    not as it was written.
    """
    files.require(directory)
    states = {}
    for name, row_type in (("rows", TrainingRow), ("heldout", HeldoutRow)):
        for where, row in _lines(directory / f"{name}.jsonl", row_type):
            if row.id in states:
                raise UserError(f"{where}: id: {shown(row.id)} stands there twice; {MEND}")
            states[row.id] = row.states
    return states


def _lines(path: Path, row_type: type[Record]) -> Iterator[tuple[str, Record]]:
    """(file and line, the row)."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                try:
                    row = json_text.parse(line.decode("utf-8"))
                except ValueError as error:
                    raise UserError(f"{where}: not JSON ({shown(str(error))}); {MEND}") from None
                yield where, row_type.of(row, where, MEND)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {MEND}") from None


def write(directory: Path, config: WorldConfig, seed: int, system_prompt: str | None) -> None:
    """Publishes rows.jsonl, heldout.jsonl and model/ (a bf16 Qwen3 with tokenizer) in
    `directory`.
    """
    from abscot.data import toy_base

    began_s, meta = time.monotonic(), {}
    rows, heldout = make_rows(config, seed)
    base_rows = []  # no more of them than the base needs: there may be a million
    with files.publish(directory, meta) as temp:
        with open(temp / "heldout.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in heldout)
        with open(temp / "rows.jsonl", "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                if len(base_rows) < toy_base.rows_needed(config):
                    base_rows.append(row)
        log(f"world: {config.rows:,} rows and {config.heldout:,} held-out problems")
        model, tokenizer = toy_base.make_base(base_rows, config, seed, system_prompt)
        model.save_pretrained(temp / "model")
        tokenizer.save_pretrained(temp / "model")
        meta["seconds"] = time.monotonic() - began_s
