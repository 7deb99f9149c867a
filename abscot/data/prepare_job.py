"""The state of a preparation: its units, its draw, its work directory, the rows it does not use."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abscot.common.errors import UserError
from abscot.data.sources import Rejected, Unit
from abscot.recipe.schema import Recipe


@dataclass(frozen=True)
class Job:
    """What every rank knows. `settings` decide the result; work under other settings is not
    continued.
    """

    recipe: Recipe
    work: Path
    units: list[Unit]
    settings: dict

    @property
    def store(self) -> Path:
        return self.work / "shards"

    def unit_file(self, unit: int, suffix: str) -> Path:
        return self.work / "scan" / f"unit_{unit:05d}.{suffix}"

    def shard_file(self, shard: int, suffix: str) -> Path:
        return (
            self.store if suffix == "arrow" else self.work / "tokenised"
        ) / f"shard_{shard:05d}.{suffix}"


@dataclass(frozen=True)
class Draw:
    """The rows to tokenise, in the order of the input (np.int64); shard s is [starts[s], starts[s +
    1]).
    """

    unit: np.ndarray
    row: np.ndarray  # inside the unit
    chars: np.ndarray
    starts: np.ndarray

    @property
    def shards(self) -> range:
        return range(len(self.starts) - 1)

    def rows_of(self, shard: int) -> int:
        return int(self.starts[shard + 1] - self.starts[shard])

    def chars_of(self, shard: int) -> int:
        return int(self.chars[self.starts[shard] : self.starts[shard + 1]].sum())


@contextlib.contextmanager
def writing(work: Path):
    """A disk that is full or read-only, as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or work}: cannot be written ({error.strerror or error}); what is "
            "finished is kept: make room and run the same command"
        ) from error


@contextlib.contextmanager
def new_file(path: Path, mode: str):
    """A file that appears under its name when it is complete, or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@dataclass(frozen=True)
class RejectedRow:
    """A line of a list of rows that are not used. row: inside the unit; tokens: where counted."""

    unit: int
    row: int
    reason: str
    detail: str = ""
    tokens: int | None = None

    @classmethod
    def of(cls, unit: int, row: int, error: Rejected) -> "RejectedRow":
        return cls(unit, row, error.reason, error.detail, error.tokens)

    def write(self, file) -> None:
        file.write(json.dumps(vars(self)) + "\n")


def scanned(job: Job, unit: int) -> dict[str, np.ndarray]:
    with np.load(job.unit_file(unit, "npz")) as file:
        return dict(file)


def rejected_lines(job: Job, shards: int) -> Iterator[dict]:
    """Every row that is not used: file, line (from 1; rows of a table likewise), reason, detail,
    and tokens where they were counted.
    """
    first_line, seen = [], Counter()
    for number, unit in enumerate(job.units):
        first_line.append(1 + seen[place(unit)])
        seen[place(unit)] += int(scanned(job, number)["lines"])
    files = [job.unit_file(u, "jsonl") for u in range(len(job.units))]
    for path in [
        *files,
        job.work / "drawn.jsonl",
        *(job.shard_file(s, "jsonl") for s in range(shards)),
    ]:
        with open(path) as file:
            for rejected in (RejectedRow(**line) for line in map(json.loads, file)):
                yield {
                    "file": place(job.units[rejected.unit]),
                    "line": first_line[rejected.unit] + rejected.row,
                    "reason": rejected.reason,
                    "detail": rejected.detail,
                    **({"tokens": rejected.tokens} if rejected.tokens is not None else {}),
                }


def place(unit: Unit) -> str:
    return f"{unit.file} part {unit.start}" if unit.kind == "hub" else unit.file
