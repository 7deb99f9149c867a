"""Result files: results/NAME.jsonl, a row per answer, and NAME.meta.json, which vouches for it."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from abscot.common import json_text
from abscot.common.errors import UserError, shown
from abscot.common.files import sha256_file, write_text_atomic
from abscot.common.record import Record
from abscot.recipe.run import Run

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


META_SUFFIX = ".meta.json"


def result_name(mode: str, model: str, benchmark: str) -> str:
    return f"{mode}_{model}_{benchmark}"


def rows_file(run: Run, name: str) -> Path:
    return run.results / f"{name}.jsonl"


def meta_file(run: Run, name: str) -> Path:
    return run.results / f"{name}{META_SUFFIX}"


class Answer(Record):
    """What a model said to one question. Tokens are counted from ids; n_reasoning_tokens: Z with
    its delimiters, or everything up to `</think>`. prompt_cut: it lost its middle.
    """

    trace_ids: list[Count]
    trace_tokens: list[str]
    reasoning: str
    response: str
    finish_reason: str
    n_abstract_tokens: Count
    n_reasoning_tokens: Count
    n_response_tokens: Count
    n_total_tokens: Count
    n_abstract_in_response: Count
    prompt_cut: bool

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.n_total_tokens != self.n_reasoning_tokens + self.n_response_tokens:
            raise ValueError("n_total_tokens is not n_reasoning_tokens + n_response_tokens")
        if not self.n_abstract_tokens == len(self.trace_ids) == len(self.trace_tokens):
            raise ValueError("n_abstract_tokens does not count trace_ids and trace_tokens")
        return self


class Asked(Record):
    """Which answer it is: the sample'th to a problem, whose right answer is gold. trace_of: the
    id of the problem whose trace it saw, where that is another one.
    """

    id: str
    sample: Count
    problem: str
    gold: str
    trace_of: str | None = None


class ResultRow(Answer, Asked):  # in this order the fields of Asked come first
    """One scored answer. correct: 0..1, of answers in a closed box where the benchmark's scorer
    wants one; correct_any: with the fallbacks too. None where nobody judged. prediction, scorer:
    what was found, and how it was found and compared.
    """

    prediction: str | None = None
    correct: Share | None = None
    correct_any: Share | None = None
    scorer: str = ""


class Identity(Record):
    """What a result file must agree on to be taken as it is. round: 0 for the base, None for a
    baseline. limit: problems asked, None: all. What a mode does not have is None or 0.
    """

    mode: str
    round: int | None
    model: str
    benchmark: str
    model_fingerprint: str
    seed: int
    samples: Annotated[int, Field(ge=1)]
    limit: int | None
    max_reasoning_tokens: Count
    max_answer_tokens: Count
    answer_temperature: Amount
    answer_top_p: Amount
    trace_temperature: Amount | None
    trace_top_p: Amount | None
    m_min: Count | None
    m_max: Count | None

    @property
    def decoding(self) -> str:
        """For people: `trace of 16 to 128 at 0.7; answer greedy, up to 8,192`."""

        def rule(temperature: float, top_p: float) -> str:
            top = f" and top_p {top_p:g}" if top_p < 1 else ""
            return f"at {temperature:g}{top}" if temperature else "greedy"

        parts = []
        if self.trace_temperature is not None:
            sampled = rule(self.trace_temperature, self.trace_top_p)
            parts.append(f"trace of {self.m_min} to {self.m_max} {sampled}")
        elif self.m_max is not None:
            parts.append(f"{self.m_max} pause tokens")
        if self.max_reasoning_tokens:
            parts.append(f"thought up to {self.max_reasoning_tokens:,}")
        answer = rule(self.answer_temperature, self.answer_top_p)
        return "; ".join([*parts, f"answer {answer}, up to {self.max_answer_tokens:,}"])


class Environment(Record):
    """Where answers were made."""

    engine: str
    dtype: str
    device: str


class Totals(Record):
    """What a meta file says of its rows and what the rows say themselves."""

    problems: Count
    accuracy: Share | None
    accuracy_any: Share | None
    mean_total_tokens: Amount
    cut_prompts: Count
    unfinished_answers: Count
    abstract_tokens_in_responses: Count

    @classmethod
    def counted(cls, rows: list[ResultRow]) -> "Totals":
        """Those of at least one row."""

        def mean(name: str) -> float | None:
            values = [value for row in rows if (value := getattr(row, name)) is not None]
            return math.fsum(values) / len(values) if values else None

        return Totals(
            problems=len({row.id for row in rows}),
            accuracy=mean("correct"),
            accuracy_any=mean("correct_any"),
            mean_total_tokens=mean("n_total_tokens"),
            cut_prompts=sum(row.prompt_cut for row in rows),
            unfinished_answers=sum(row.finish_reason == "length" for row in rows),
            abstract_tokens_in_responses=sum(row.n_abstract_in_response for row in rows),
        )


class ResultMeta(Totals, Identity):  # in this order the fields of Identity come first
    """The head of a result file. rows_sha256: of the file. prompt_tokens_computed: those not found
    in the prefix cache, a number per stage of a request.
    """

    rows_sha256: str
    wall_s: Amount
    tokens_per_s: Amount
    environment: Environment
    prompt_tokens_computed: list[Count]

    def agrees_with(self, record: Record) -> bool:
        return all(getattr(self, name) == value for name, value in record)


class Result(NamedTuple):
    meta: ResultMeta
    rows: list[ResultRow]


class KeptAnswer(Record):
    """An answer as it is kept until all are there. number: of the question in its job; elapsed_s:
    since the job began; computed: prompt tokens, a number per stage; row: not scored yet.
    """

    number: Count
    elapsed_s: Amount
    computed: list[Count]
    row: ResultRow
    environment: Environment

    def line(self) -> str:
        return json.dumps(self.model_dump(), ensure_ascii=False) + "\n"


def write_rows(path: Path, rows: list[ResultRow]) -> None:
    lines = (json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in rows)
    write_text_atomic(path, "".join(lines))


def read_meta(run: Run, name: str) -> ResultMeta:
    """Raises UserError for one that is damaged or stands under another name."""
    path, again = meta_file(run, name), _again(run, name)
    meta = ResultMeta.read(path, again)
    if (inside := result_name(meta.mode, meta.model, meta.benchmark)) != name:
        raise UserError(f"{path}: it is of {shown(inside)}; {again}")
    return meta


def read_result(run: Run, name: str) -> Result:
    """A result that is whole: its rows are those that its meta vouches for.

    Raises UserError with the file, the line where there is one, and what mends it.
    """
    meta, path = read_meta(run, name), rows_file(run, name)
    again = _again(run, name, meta)
    rows = [ResultRow.of(value, where, again) for where, value in json_lines(path, again)]
    if wrong := _disagreement(meta, rows, path):
        raise UserError(f"{path}: {wrong}; {again}")
    return Result(meta, rows)


def is_whole(meta_path: Path) -> bool:
    """Whether a meta file is there and vouches for the rows beside it as they are now."""
    rows_path = meta_path.with_name(meta_path.name.removesuffix(META_SUFFIX) + ".jsonl")
    if not (meta_path.is_file() and rows_path.is_file()):
        return False
    try:
        return ResultMeta.read(meta_path).rows_sha256 == sha256_file(rows_path)
    except UserError:
        return False


def _disagreement(meta: ResultMeta, rows: list[ResultRow], path: Path) -> str | None:
    """How rows and meta differ, counts first: they say what was lost."""
    expected, asked = meta.problems * meta.samples, Counter((row.id, row.sample) for row in rows)
    if len(rows) != expected or not rows:
        return f"{len(rows)} rows, its .meta.json says {expected}"
    (first, times), samples = asked.most_common(1)[0], {sample for _, sample in asked}
    if times > 1:
        return f"{times} rows of {shown(first[0])}, sample {first[1]}"
    if samples != set(range(meta.samples)):
        return f"samples {sorted(samples)[:9]}, its .meta.json says {meta.samples} a problem"
    for key, value in Totals.counted(rows):
        if getattr(meta, key) != value:
            return f"{key} is {value} in its rows, {getattr(meta, key)} in its .meta.json"
    return None if sha256_file(path) == meta.rows_sha256 else "changed after its .meta.json"


def json_lines(path: Path, mend: str) -> Iterator[tuple[str, object]]:
    """(`FILE:LINE`, value) of each line. Raises UserError for one that is no JSON, or cut."""
    for number, line in enumerate(read_bytes(path, mend).splitlines(), 1):
        yield f"{path}:{number}", parse_line(line, f"{path}:{number}", mend)


def read_bytes(path: Path, mend: str) -> bytes:
    """Raises UserError for what is no regular file: to read a pipe would be to wait."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file; {mend}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {mend}") from None


def parse_line(line: bytes, where: str, mend: str) -> object:
    try:
        return json_text.parse(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not text (byte {error.start}); {mend}") from None
    except ValueError as error:
        raise UserError(f"{where}: broken line ({error}); {mend}") from None


def _again(run: Run, name: str, meta: ResultMeta | None = None) -> str:
    """What puts a damaged result right."""
    asked = f"{meta.model} --mode {meta.mode} --benchmark {meta.benchmark}" if meta else "all"
    command = f"python launch/evaluate.py --recipe {run.config} --model {asked}"
    return f"delete {run.results / name}.* and run: {command}"
