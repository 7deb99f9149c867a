"""Result files: results/NAME.jsonl, a row per answer, and NAME.meta.json, which vouches for it."""

import json
from pathlib import Path

from abscot.common.errors import UserError
from abscot.common.files import write_text_atomic
from abscot.common.record import Record
from abscot.recipe.run import Run

AGAIN = "delete the file and run launch/evaluate.py again"


def result_name(mode: str, model: str, benchmark: str) -> str:
    return f"{mode}_{model}_{benchmark}"


def rows_file(run: Run, name: str) -> Path:
    return run.results / f"{name}.jsonl"


def meta_file(run: Run, name: str) -> Path:
    return run.results / f"{name}.meta.json"


class Answer(Record):
    """What a model said to one question. Tokens are counted from ids; n_reasoning_tokens: Z with
    its delimiters, or everything up to `</think>`. prompt_cut: it lost its middle.
    """

    trace_ids: list[int]
    trace_tokens: list[str]
    reasoning: str
    response: str
    finish_reason: str
    n_abstract_tokens: int
    n_reasoning_tokens: int
    n_response_tokens: int
    n_total_tokens: int
    n_abstract_in_response: int
    prompt_cut: bool


class Asked(Record):
    """Which answer it is: the sample'th to a problem, whose right answer is gold."""

    id: str
    sample: int
    problem: str
    gold: str


class ResultRow(Answer, Asked):  # in this order the fields of Asked come first
    """One scored answer. correct: 0..1, None where nobody judged; scorer: how the answer was found
    and compared.
    """

    prediction: str | None = None
    correct: float | None = None
    scorer: str = ""


class Identity(Record):
    """What a result file must agree on to be taken as it is. round: 0 for the base, None for a
    baseline. limit: problems asked, None: all. trace_temperature: where training's rules hold.
    """

    mode: str
    round: int | None
    model: str
    benchmark: str
    model_fingerprint: str
    seed: int
    samples: int
    temperature: float
    top_p: float
    limit: int | None
    max_reasoning_tokens: int
    max_answer_tokens: int
    m_min: int
    m_max: int
    trace_temperature: float | None = None

    def plain(self) -> dict:
        """As JSON values; what does not apply is left out."""
        left_out = {"trace_temperature"} if self.trace_temperature is None else set()
        return self.model_dump(exclude=left_out)


class Environment(Record):
    """Where answers were made."""

    engine: str
    dtype: str
    device: str


class ResultMeta(Identity):
    """The head of a result file. prompt_tokens_computed: those not found in the prefix cache, a
    number per stage of a request.
    """

    problems: int
    accuracy: float | None
    mean_total_tokens: float
    wall_s: float
    tokens_per_s: float
    cut_prompts: int
    unfinished_answers: int
    abstract_tokens_in_responses: int
    environment: Environment
    prompt_tokens_computed: list[int]

    def agrees_with(self, identity: Identity) -> bool:
        return all(getattr(self, name) == value for name, value in identity)


class KeptAnswer(Record):
    """An answer as it is kept until all are there. number: of the question in its job; elapsed_s:
    since the job began; computed: prompt tokens, a number per stage.
    """

    number: int
    elapsed_s: float
    computed: list[int]
    row: Answer
    environment: Environment

    def line(self) -> str:
        return json.dumps(self.model_dump(), ensure_ascii=False) + "\n"


def write_rows(path: Path, rows: list[ResultRow]) -> None:
    lines = (json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in rows)
    write_text_atomic(path, "".join(lines))


def read_rows(path: Path) -> list[ResultRow]:
    """Raises UserError with the line that is broken."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                raise UserError(f"{path}:{number}: broken line; {AGAIN}") from None
            rows.append(ResultRow.of(value, f"{path}:{number}", AGAIN))
    return rows
