"""The benchmarks, a table: where the problems come from, how they are asked, which answer is right,
who scores.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from abscot.common.draws import rng
from abscot.common.errors import UserError
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


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

    read: row -> (problem, gold). scorer: a name in scoring.SCORERS, or `judge`. subset: a fixed
    draw of so many problems. cot: row -> its gold CoT, None where the benchmark has none.
    """

    hub: tuple[str, str | None, str] | None
    read: Callable[[dict], tuple[str, str]]
    scorer: str
    id_field: str | None = None
    subset: int | None = None
    cot: Callable[[dict], str | None] | None = None


def _fields(problem: str, gold: str) -> Callable[[dict], tuple[str, str]]:
    return lambda row: (row[problem], str(row[gold]))


def _gsm8k(row: dict) -> tuple[str, str]:
    return row["question"], row["answer"].rpartition("####")[2].strip().replace(",", "")


def _gsm8k_steps(row: dict) -> str:
    """The steps as training reads them: without the calculator's notes."""
    return re.sub(r"<<[^<>]*>>", "", row["answer"].rpartition("####")[0]).strip()


def _gpqa(row: dict) -> tuple[str, str]:
    """Four choices in an order that depends on the question alone."""
    texts = [row["Correct Answer"], *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    order = rng("gpqa", row["Question"]).permutation(4)
    choices = "\n".join(
        f"{letter}) {texts[i].strip()}" for letter, i in zip("ABCD", order, strict=True)
    )
    gold = "ABCD"[int((order == 0).argmax())]
    return f"{row['Question'].strip()}\n\n{choices}\n\nGive the letter of the right choice.", gold


def _hotpot(row: dict) -> tuple[str, str]:
    return f"{row['question']}\n\nGive a short answer: a name, a date, a number, yes or no.", row[
        "answer"
    ]


BENCHMARKS = {
    "world": Benchmark(
        None, _fields("problem", "answer"), "math", "id", cot=lambda row: row.get("cot")
    ),
    "math500": Benchmark(
        ("HuggingFaceH4/MATH-500", None, "test"),
        _fields("problem", "answer"),
        "math",
        "unique_id",
        cot=lambda row: row.get("solution"),
    ),
    "gsm8k": Benchmark(("openai/gsm8k", "main", "test"), _gsm8k, "math", cot=_gsm8k_steps),
    "aime24": Benchmark(
        ("math-ai/aime24", None, "test"), _fields("problem", "answer"), "math", "id"
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

    Raises UserError for an unknown name, a missing file, and a row without the fields that the
    benchmark reads.
    """
    if name not in BENCHMARKS:
        raise UserError(f"eval.benchmarks: no benchmark {name}; known: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    where, rows = _rows(name, benchmark, recipe, run)
    if benchmark.subset and len(rows) > benchmark.subset:
        rows = [
            rows[i] for i in sorted(rng("subset", name).permutation(len(rows))[: benchmark.subset])
        ]
    problems = []
    for number, row in enumerate(rows[: recipe.eval.limit]):
        try:
            problem, gold = benchmark.read(row)
            identity = row[benchmark.id_field] if benchmark.id_field else number
            cot = benchmark.cot(row) if benchmark.cot else None
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{where}: row {number + 1}: no field {error}; found {', '.join(map(str, row))}"
            ) from None
        problems.append(Problem(f"{name}/{identity}", problem, gold, cot))
    if not problems:
        raise UserError(f"{where}: no problems for benchmark {name}")
    return problems


def _rows(name: str, benchmark: Benchmark, recipe: Recipe, run: Run) -> tuple[str, list[dict]]:
    """(where they come from, the rows). A file named in eval.files goes before the hub."""
    path = recipe.eval.files.get(name)
    if path is None and benchmark.hub is None:
        path = run.world / "heldout.jsonl"
    if path is not None:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file for benchmark {name}; correct eval.files.{name}")
        return str(path), _read_file(Path(path))
    from datasets import load_dataset

    dataset, configuration, split = benchmark.hub
    try:
        return dataset, list(load_dataset(dataset, configuration, split=split))
    # Offline, gated, renamed: whatever the hub client raises, the user mends it the same way.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        local = f"name a local file: --set eval.files.{name}=FILE"
        raise UserError(f"{dataset}: not available from the hub ({reason}); {local}") from None


def _read_file(path: Path) -> list[dict]:
    """Rows of a .json list or a .jsonl file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}: line {number}: not JSON ({error.msg}); mend or remove the line"
                ) from None
    return rows


def has_cots(benchmark: str) -> bool:
    """Whether a benchmark's problems come with gold CoTs."""
    known = BENCHMARKS.get(benchmark)
    return known is not None and known.cot is not None
