"""Local files of evaluation problems, row by row: .jsonl, or .json with one list; plain or .gz."""

import gzip
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from abscot.common import json_text
from abscot.common.errors import UserError
from abscot.common.paths import matching

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
MOST_ROW_BYTES = 16 * 2**20
MOST_LIST_BYTES = 64 * 2**20  # of a .json file, which is read as one text
MOST_FILE_BYTES = 512 * 2**20  # unpacked
MOST_LINES = 1_000_000
BLANK = re.compile(r"[ \t\r\n]*")


def read(files: str, key: str) -> Iterator[tuple[str, object]]:
    """(`FILE:LINE`, value) of each row of a file or of all files of a glob, sorted. key: what names
    the files.

    Raises UserError for a file that is missing, empty, of another kind or damaged.
    """
    for path in _found(files, key):
        _check_kind(path, key)
        rows = _list_rows(path) if path.name.endswith((".json", ".json.gz")) else _lines(path)
        row = None
        for row in rows:
            yield row
        if row is None:
            raise UserError(f"{key}: {path}: no rows")


def _found(files: str, key: str) -> list[Path]:
    found = matching(files)
    if not found:
        raise UserError(f"{key}: {files}: no such file")
    return found


def _check_kind(path: Path, key: str) -> None:
    name = f"{key}: {path}"
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{name}: expected a file whose name ends in {', '.join(SUFFIXES)}")
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None
    if not is_file:  # to read a pipe would be to wait
        raise UserError(f"{name}: not a file")


def _lines(path: Path) -> Iterator[tuple[str, object]]:
    number = read_bytes = 0
    with _Opened(path) as file:
        while line := file.readline(MOST_ROW_BYTES + 1):
            number, read_bytes = number + 1, read_bytes + len(line)
            where = f"{path}:{number}"
            if len(line) > MOST_ROW_BYTES:
                raise UserError(f"{where}: more than {MOST_ROW_BYTES:,} bytes in one row")
            if number > MOST_LINES or read_bytes > MOST_FILE_BYTES:
                most = f"{MOST_LINES:,} lines or {MOST_FILE_BYTES:,} bytes"
                raise UserError(f"{where}: more than {most}; keep the problems to be asked")
            text = _text(line, where, number == 1)
            if text.strip():
                try:
                    yield where, json_text.parse(text)
                except ValueError as error:
                    raise UserError(f"{where}: {_no_json(str(error))}") from None


def _list_rows(path: Path) -> Iterator[tuple[str, object]]:
    """The elements one by one, so that each has its line, and a list of anything else ends soon."""
    name = str(path)
    with _Opened(path) as file:
        data = file.read(MOST_LIST_BYTES + 1)
    if len(data) > MOST_LIST_BYTES:
        raise UserError(f"{name}: more than {MOST_LIST_BYTES:,} bytes; make it a .jsonl file")
    text = _text(data, name, True)
    at, line, counted, row = _past_blank(text, 0), 1, 0, 0
    if at == len(text):
        return
    if text[at] != "[":
        raise UserError(f"{name}:1: expected a list of objects; a row a line is a .jsonl file")
    at = _past_blank(text, at + 1)
    while text[at : at + 1] not in ("", "]") or row:
        if row and text[at : at + 1] != ",":
            break
        at = _past_blank(text, at + (row > 0))
        line, counted, row = line + text.count("\n", counted, at), at, row + 1
        where = f"{name}:{line}: row {row}"
        try:
            value, at = json_text.parse_at(text, at)
        except ValueError as error:
            raise UserError(f"{where}: {_no_json(str(error))}") from None
        yield where, value
        at = _past_blank(text, at)
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        raise UserError(f"{name}:{line}: {_no_json('expected , or the ] that ends the file')}")


def _past_blank(text: str, at: int) -> int:
    return BLANK.match(text, at).end()


def _text(data: bytes, where: str, first: bool) -> str:
    """UTF-8, a byte order mark at the beginning of a file allowed."""
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}); convert the file") from None


def _no_json(why: str) -> str:
    return f"not JSON ({why}); correct or remove the row"


class _Opened:
    """A file, unpacked where it ends in .gz; what the system says of it is a UserError."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> BinaryIO:
        try:
            opener = gzip.open if self.path.suffix == ".gz" else open
            self.file = opener(self.path, "rb")
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None
        return self.file

    def __exit__(self, kind, error, traceback) -> None:
        self.file.close()
        if isinstance(error, (OSError, EOFError, zlib.error)):
            raise UserError(f"{self.path}: damaged ({error}); fetch it again") from None
