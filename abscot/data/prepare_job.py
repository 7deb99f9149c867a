"""The state of a preparation: its units, its work directory, what vouches for its pieces, the rows
it does not use.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from abscot.common.errors import UserError
from abscot.common.files import sha256_file
from abscot.common.record import Record
from abscot.data.rejected import Rejected
from abscot.data.sources import Unit
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

    def file(self, kind: Literal["unit", "shard"], number: int, suffix: str) -> Path:
        """A file of a scanned unit or of a tokenised shard."""
        return self.work / f"{kind}s_made" / f"{kind}_{number:05d}.{suffix}"


class Note(Record):
    """Vouches for the files of a finished piece of work; written after them. sha256: by suffix."""

    sha256: dict[str, str]


class UnitNote(Note):
    """unit_N.npy: row, key, characters of each row that may be used, int64 [rows, 3]; unit_N.jsonl:
    the others.
    """

    lines: int


class ShardNote(Note):
    """shard_N.arrow: the rows that fit; shard_N.jsonl: the others. kept, passed_over: their places
    in the order of the draw; truncated: those of the kept rows whose CoT is cut.
    """

    kept: list[int]
    truncated: list[int]
    passed_over: list[int]


AnyNote = TypeVar("AnyNote", bound=Note)


def finished(kind: type[AnyNote], file: Path) -> AnyNote | None:
    """The note at `file`; None, and a line that says why, where its piece has to be made again."""
    if not file.is_file():
        return None
    try:
        note = kind.read(file, mend="making it again")
        for suffix, checksum in note.sha256.items():
            if sha256_file(file.with_suffix(f".{suffix}")) != checksum:
                raise UserError(
                    f"{file.with_suffix(f'.{suffix}')}: checksum is wrong; making it again"
                )
        return note
    except UserError as error:
        print(error, flush=True)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}; making it again", flush=True)
    return None


def checksums(note_file: Path, *suffixes: str) -> dict[str, str]:
    return {suffix: sha256_file(note_file.with_suffix(f".{suffix}")) for suffix in suffixes}


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
    """A row that is not used. row: inside the unit; tokens: where counted."""

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


def rejected_rows(path: Path) -> Iterator[RejectedRow]:
    with open(path) as file:
        for line in file:
            yield RejectedRow(**json.loads(line))


def scanned(job: Job, unit: int) -> np.ndarray:
    """Row, key, characters of each row of a unit that may be used, int64 [rows, 3]."""
    return np.load(job.file("unit", unit, "npy"))


class RejectedLine(Record):
    """A line of rejected.jsonl: where a row stands that is not used, and why. line: from 1, rows of
    a table likewise; tokens: where they were counted.
    """

    file: str
    line: int
    reason: str
    detail: str
    tokens: int | None = None


def rejected_lines(job: Job, rows: Iterable[RejectedRow]) -> Iterator[RejectedLine]:
    first_line, seen = [], Counter()
    for number, unit in enumerate(job.units):
        first_line.append(1 + seen[place(unit)])
        seen[place(unit)] += UnitNote.read(job.file("unit", number, "json")).lines
    for rejected in rows:
        yield RejectedLine(
            file=place(job.units[rejected.unit]),
            line=first_line[rejected.unit] + rejected.row,
            reason=rejected.reason,
            detail=rejected.detail,
            tokens=rejected.tokens,
        )


def read_rejected(path: Path) -> Iterator[RejectedLine]:
    """A published rejected.jsonl. Raises UserError for a line that is none of it."""
    mend = f"delete {path.parent} and make it again with launch/prepare.py"
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield RejectedLine.of(json.loads(line), f"{path}:{number}", mend)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {mend}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not the list that was written; {mend}") from None


def place(unit: Unit) -> str:
    return f"{unit.file} part {unit.start}" if unit.kind == "hub" else unit.file
