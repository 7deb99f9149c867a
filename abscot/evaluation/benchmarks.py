"""The benchmarks, a table: where the problems come from, how they are asked, which answer is right,
who scores.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from abscot.common import json_text
from abscot.common.draws import rng
from abscot.common.errors import MissingInput, UserError, shown
from abscot.evaluation import problem_files
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


class BadRow(Exception):
    """What is wrong with a row: its place is not known here."""


@dataclass(frozen=True)
class Problem:
    """gold: the right answer as text, or the reference that a judge compares with. cot: its verbal
    CoT, where known.
    """

    id: str
    problem: str
    gold: str
    cot: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """hub: (data set, configuration or None, split) on the hub; a local file of the same rows
    stands in for it.

    read: row -> (problem, gold), or BadRow. scorer: a name in scoring.SCORERS, or `judge`. subset:
    a fixed draw of so many problems. cot: row -> its gold CoT, None where the benchmark has none.
    """

    hub: tuple[str, str | None, str] | None
    read: Callable[[dict], tuple[str, str]]
    scorer: str
    id_field: str | None = None
    subset: int | None = None
    cot: Callable[[dict], str | None] | None = None


SURROGATE = re.compile("[\ud800-\udfff]")


def _text(row: dict, field: str) -> str:
    """The text of a field. Raises BadRow for a missing one, another type, and empty text."""
    if field not in row:
        found = ", ".join(map(shown, row)) or "nothing"
        raise BadRow(f"no field {field}; found {shown(found)}")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{field}: expected text, found {json_text.kind(value)}")
    if SURROGATE.search(value):
        raise BadRow(f"{field}: expected text, found half a character (a lone surrogate)")
    return value


def _fields(problem: str, gold: str) -> Callable[[dict], tuple[str, str]]:
    return lambda row: (_text(row, problem), _text(row, gold))


def _cot(field: str) -> Callable[[dict], str | None]:
    """A field that may be missing, null or empty."""
    return lambda row: _text(row, field) if row.get(field) not in (None, "") else None


def _steps_and_gold(row: dict) -> tuple[str, str]:
    steps, marked, gold = _text(row, "answer").rpartition("####")
    if not marked or not gold.strip():
        raise BadRow("answer: expected steps and `#### GOLD`, found no gold behind ####")
    return steps, gold.strip().replace(",", "")


def _gsm8k(row: dict) -> tuple[str, str]:
    return _text(row, "question"), _steps_and_gold(row)[1]


def _gsm8k_cot(row: dict) -> str | None:
    """The steps as training reads them: without the calculator's notes."""
    return re.sub(r"<<[^<>]*>>", "", _steps_and_gold(row)[0]).strip() or None


def _gpqa(row: dict) -> tuple[str, str]:
    """Four choices in an order that depends on the question alone."""
    texts = [_text(row, name) for name in ("Correct Answer", *GPQA_WRONG)]
    question = _text(row, "Question")
    order = rng("gpqa", question).permutation(4)
    choices = "\n".join(
        f"{letter}) {texts[i].strip()}" for letter, i in zip("ABCD", order, strict=True)
    )
    gold = "ABCD"[int((order == 0).argmax())]
    return f"{question.strip()}\n\n{choices}\n\nGive the letter of the right choice.", gold


def _hotpot(row: dict) -> tuple[str, str]:
    asked = "Give a short answer: a name, a date, a number, yes or no."
    return f"{_text(row, 'question')}\n\n{asked}", _text(row, "answer")


GPQA_WRONG = tuple(f"Incorrect Answer {i}" for i in (1, 2, 3))


BENCHMARKS = {
    "world": Benchmark(None, _fields("problem", "answer"), "math", "id", cot=_cot("cot")),
    "math500": Benchmark(
        ("HuggingFaceH4/MATH-500", None, "test"),
        _fields("problem", "answer"),
        "math",
        "unique_id",
        cot=_cot("solution"),
    ),
    "gsm8k": Benchmark(("openai/gsm8k", "main", "test"), _gsm8k, "math", cot=_gsm8k_cot),
    "aime24": Benchmark(
        ("HuggingFaceH4/aime_2024", None, "train"), _fields("problem", "answer"), "math", "id"
    ),
    "aime25": Benchmark(
        ("math-ai/aime25", None, "test"), _fields("problem", "answer"), "math", "id"
    ),
    "gpqa_diamond": Benchmark(("Idavidrein/gpqa", "gpqa_diamond", "train"), _gpqa, "choice"),
    "hotpotqa": Benchmark(
        ("hotpotqa/hotpot_qa", "distractor", "validation"), _hotpot, "f1", subset=500
    ),
    "alpaca_eval": Benchmark(
        ("tatsu-lab/alpaca_eval", "alpaca_eval", "eval"), _fields("instruction", "output"), "judge"
    ),
}


def load(name: str, recipe: Recipe, run: Run) -> list[Problem]:
    """The problems of a benchmark, at most eval.limit of them (the first ones after the fixed
    subset is drawn).

    Raises UserError, with file and line, for an unknown name, a file that cannot be read, a row
    without the texts that the benchmark reads, and an id that stands twice.
    """
    if name not in BENCHMARKS:
        raise UserError(f"eval.benchmarks: no benchmark {name}; known: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    problems, where_of = [], {}  # where_of: id -> the place of its row
    for number, (where, row) in enumerate(_rows(name, benchmark, recipe, run)):
        try:
            problem = _problem(name, benchmark, number, row)
        except BadRow as error:
            raise UserError(f"{where}: {error}; correct or remove the row") from None
        if problem.id in where_of:
            raise UserError(
                f"{where}: {benchmark.id_field}: {shown(problem.id)} stands at "
                f"{where_of[problem.id]} too; give each problem an id of its own"
            )
        where_of[problem.id] = where
        problems.append(problem)
    if benchmark.subset and len(problems) > benchmark.subset:
        drawn = rng("subset", name).permutation(len(problems))[: benchmark.subset]
        problems = [problems[i] for i in sorted(drawn)]
    return problems[: recipe.eval.limit]


def _problem(name: str, benchmark: Benchmark, number: int, row: dict) -> Problem:
    """number: of the row, its id where the benchmark's rows have none. Raises BadRow."""
    if not isinstance(row, dict):
        raise BadRow(f"expected an object, found {json_text.kind(row)}")
    text, gold = benchmark.read(row)
    identity: object = number
    if benchmark.id_field:
        identity = row.get(benchmark.id_field)
        if type(identity) is not int:
            identity = _text(row, benchmark.id_field)
    return Problem(f"{name}/{identity}", text, gold, benchmark.cot(row) if benchmark.cot else None)


def _rows(
    name: str, benchmark: Benchmark, recipe: Recipe, run: Run
) -> Iterator[tuple[str, object]]:
    """(where it stands, the row). A file named in eval.files goes before the hub."""
    key = f"eval.files.{name}"
    if (file := recipe.eval.files.get(name)) is not None:
        return problem_files.read(file, key)
    if benchmark.hub is None:
        if not (heldout := run.world / "heldout.jsonl").exists():
            raise MissingInput(run.world)
        return problem_files.read(str(heldout), f"benchmark {name}")
    from datasets import load_dataset

    dataset, configuration, split = benchmark.hub
    try:
        rows = list(load_dataset(dataset, configuration, split=split))
    # Offline, gated, renamed: whatever the hub client raises, the user mends it the same way.
    except Exception as error:
        reason = shown((str(error).splitlines() or [type(error).__name__])[0])
        local = f"name a local file: --set {key}=FILE"
        raise UserError(f"{dataset}: not available from the hub ({reason}); {local}") from None
    if not rows:
        raise UserError(f"{dataset}: no rows for benchmark {name}")
    return ((f"{dataset}: row {number}", row) for number, row in enumerate(rows, 1))


def has_cots(benchmark: str) -> bool:
    """Whether a benchmark's problems come with gold CoTs."""
    known = BENCHMARKS.get(benchmark)
    return known is not None and known.cot is not None
