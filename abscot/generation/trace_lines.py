"""Published trace files, line by line: what a line may say, and what its tokens are here.

A line is a JSON object. The public reproduction writes `{"trace": [ids]}`, a line for each row of
its data file; others name the row (`id`, `index`, `prompt`) or spell the tokens
(`["<TOKEN_A>", ..]`, `"<TOKEN_A><TOKEN_B>"`). Delimiters may stand around a trace.
"""

import io
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from abscot.common import json_text
from abscot.common.errors import UserError
from abscot.generation.trace_records import reason_of
from abscot.method.vocab import BEGIN, END, AbstractVocab, codebook_tokens

PUBLISHED_FIRST = 151_669  # <beginabstract>; <endabstract>, <TOKEN_A> .. <TOKEN_BL> follow
PUBLISHED = [BEGIN, END, *codebook_tokens(64)]
EITHER, NAMES = (str, int), {str: "tokens", int: "ids"}
FORMS = {
    "trace": EITHER,
    "tokens": (str,),
    "trace_tokens": (str,),
    "trace_ids": (int,),
    "token_ids": (int,),
}
PROMPTS = ("prompt", "problem", "question")  # as data files name it
MOST_BYTES = 4 * 2**20  # of a line
TOKEN = re.compile(r"\s*(<[^<>\s]*>)")


@dataclass(frozen=True)
class Line:
    """A record of a file, and where it stands."""

    file: Path
    number: int  # from 1
    record: dict

    @property
    def place(self) -> str:
        return f"{self.file}:{self.number}"

    def keys(self) -> str:
        return reprlib.repr(list(self.record))

    def value(self, key: str, expected: str, *types: type):
        """The value of `key`, None where it is not there. Raises UserError for another type."""
        value = self.record.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            raise self.refuse(key, expected, value)
        return value

    def refuse(self, key: str, expected: str, found) -> UserError:
        return UserError(f"{self.place}: {key}: expected {expected}, found {reprlib.repr(found)}")

    @property
    def id(self) -> str | None:
        """A number is its decimal text, as in the shards."""
        value = self.value("id", "a text or a whole number", str, int)
        return None if value is None else str(value)

    @property
    def index(self) -> int | None:
        value = self.value("index", "a whole number from 0", int)
        if value is not None and value < 0:
            raise self.refuse("index", "a whole number from 0", value)
        return value

    @property
    def prompt(self) -> str | None:
        key = next((key for key in PROMPTS if key in self.record), "prompt")
        value = self.value(key, "a text", str)
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            raise self.refuse(key, "text without lone surrogates", value) from None
        return value

    def trace(self) -> list[str] | list[int]:
        """Tokens, or bare ids; tokens where it has both. Raises UserError for another form."""
        forms = [self._tokens(key) for key in FORMS if key in self.record]
        if not forms:
            raise self.refuse("trace", "tokens or ids under this key", list(self.record))
        return next((form for form in forms if form and isinstance(form[0], str)), forms[0])

    def _tokens(self, key: str) -> list[str] | list[int]:
        value, kinds = self.record[key], FORMS[key]
        if isinstance(value, str) and kinds == EITHER:
            return self._split(key, value)
        if isinstance(value, list):
            for kind in kinds:
                if all(type(item) is kind for item in value):
                    return value
        raise self.refuse(key, f"a list of {' or '.join(NAMES[kind] for kind in kinds)}", value)

    def _split(self, key: str, text: str) -> list[str]:
        tokens = TOKEN.findall(text)
        if TOKEN.sub("", text).strip():
            raise self.refuse(key, f"tokens like {codebook_tokens(1)[0]} and nothing else", text)
        return tokens


def read_lines(file: Path) -> Iterator[Line]:
    """The lines of a JSONL file (.gz, .zst), blank ones left out.

    Raises UserError for a file that cannot be read and for a line that is no JSON object.
    """
    if not file.is_file():
        raise UserError(f"{file}: not a file; expected JSONL, one object a line")
    number = 0
    try:
        with io.BufferedReader(pa.input_stream(str(file), compression="detect"), 2**20) as stream:
            while raw := stream.readline(MOST_BYTES + 1):
                number += 1
                if len(raw) > MOST_BYTES:
                    raise UserError(f"{file}:{number}: longer than {MOST_BYTES:,} bytes")
                if raw.strip():
                    yield Line(file, number, _parse(file, number, raw))
    except (OSError, EOFError) as error:
        reason = reason_of(error)
        raise UserError(f"{file}: cannot be read after line {number} ({reason})") from None


def _parse(file: Path, number: int, raw: bytes) -> dict:
    place = f"{file}:{number}"
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        record = json_text.parse(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 (byte {error.start} of the line)") from None
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({str(error)[:100]})") from None
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected an object, found {reprlib.repr(record)}")
    return record


class Codes:
    """Tokens and published ids -> ids of this run's codebook. Tokens are looked up by their
    spelling, so the order of the ids does not matter; bare ids have no other meaning than their
    place.
    """

    def __init__(self, vocab: AbstractVocab):
        self.tokens = codebook_tokens(len(vocab.codebook_ids))
        self.by_token = dict(zip(self.tokens, vocab.codebook_ids, strict=True))
        self.by_token |= {BEGIN: vocab.begin_id, END: vocab.end_id}
        self.token_of = dict(zip(vocab.codebook_ids, self.tokens, strict=True))
        self.vocab = vocab
        first = vocab.begin_id
        ours = [first, first + 1, *range(first + 2, first + 2 + len(vocab.codebook_ids))]
        in_order = ours == [vocab.begin_id, vocab.end_id, *vocab.codebook_ids]
        published = {PUBLISHED_FIRST + i: token for i, token in enumerate(PUBLISHED)}
        self.by_id = {i: self.by_token[t] for i, t in published.items() if t in self.by_token}
        own = {i: i for i in ours} if in_order else {}
        # An id that two orders read differently says nothing.
        self.ambiguous = {i for i in own.keys() & published.keys() if self.by_id.get(i) != i}
        self.by_id |= own

    def codebook_ids(self, line: Line) -> list[int] | None:
        """The trace of a line without its delimiters; None where a token is not of the codebook.

        Raises UserError for ids that could be of two orders.
        """
        trace = line.trace()
        if trace and isinstance(trace[0], int):
            if unclear := next((i for i in trace if i in self.ambiguous), None):
                raise line.refuse("trace", "tokens, as its ids have two readings here", unclear)
            ids = [self.by_id.get(i) for i in trace]
        else:
            ids = [self.by_token.get(token) for token in trace]
        if ids[:1] == [self.vocab.begin_id]:
            ids = ids[1:]
        if ids[-1:] == [self.vocab.end_id]:
            ids = ids[:-1]
        return ids if set(self.vocab.codebook_ids).issuperset(ids) else None

    def spelt(self, ids) -> list[str]:
        """The tokens of a trace of this run."""
        return [self.token_of[i] for i in ids]
