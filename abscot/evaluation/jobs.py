"""Which result files there are to make: a job is a model asked one benchmark in one mode."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from abscot.common.errors import UserError
from abscot.common.files import fingerprint, require
from abscot.evaluation.benchmarks import BENCHMARKS, Problem
from abscot.evaluation.modes import MODES, Question
from abscot.method.lineage import BASELINE_MODES, bottlenecked, model_directory, round_of
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


@dataclass(frozen=True)
class Job:
    """One result file: a model asked one benchmark in one mode."""

    recipe: Recipe
    run: Run
    model: str
    mode: str
    benchmark: str

    @property
    def name(self) -> str:
        return f"{self.mode}_{self.model}_{self.benchmark}"

    @property
    def result(self) -> Path:
        return self.run.results / f"{self.name}.jsonl"

    @property
    def meta(self) -> Path:
        return self.run.results / f"{self.name}.meta.json"

    def partial(self, sample: int) -> Path:
        """What has been generated of one sample a problem; another model or other settings have
        another file.
        """
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[
            :12
        ]
        return self.run.results / f".{self.name}.{digest}.{sample}.partial"

    @property
    def samples(self) -> list[int]:
        """Samples a problem. A job with a bottleneck is greedy: one."""
        return list(range(1 if MODES[self.mode].cot else self.recipe.eval.samples))

    def questions(self, problems: list[Problem]) -> list[Question]:
        return [Question(p, self.mode, s) for p in problems[: self.limit] for s in self.samples]

    def identity(self) -> dict:
        config = self.recipe.eval
        return {
            "mode": self.mode,
            "round": round_of(self.model, self.recipe.rounds),
            "model": self.model,
            "benchmark": self.benchmark,
            "model_fingerprint": fingerprint(
                model_directory(self.run, self.model, self.recipe.rounds)
            ),
            "seed": self.recipe.seed,
            "samples": config.samples,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "limit": self.limit,
            "max_reasoning_tokens": config.max_reasoning_tokens,
            "max_answer_tokens": config.max_answer_tokens,
            "m_min": self.recipe.traces.m_min,
            "m_max": self.recipe.traces.m_max,
            **(
                {"trace_temperature": self.recipe.traces.temperature}
                if MODES[self.mode].cot
                else {}
            ),
        }

    @property
    def limit(self) -> int | None:
        """Problems that are asked, the first ones; None: all."""
        limits = [
            self.recipe.eval.limit,
            self.recipe.eval.channel_problems if MODES[self.mode].cot else None,
        ]
        return min((n for n in limits if n is not None), default=None)

    def done(self) -> bool:
        if not (self.meta.exists() and self.result.exists()):
            return False
        known = json.loads(self.meta.read_text())
        return all(known.get(key) == value for key, value in self.identity().items())


def jobs_of(
    recipe: Recipe, run: Run, model: str, modes: list[str] | None, names: list[str] | None
) -> list[Job]:
    """The jobs of one model: the recipe's modes and benchmarks unless others are asked for.

    Raises UserError for an unknown mode or benchmark and for a model that is not there yet.
    """
    if modes is None:
        modes = default_modes(recipe, model)
    for word, given, known in (
        ("mode", modes, MODES),
        ("benchmark", names or recipe.eval.benchmarks, BENCHMARKS),
    ):
        if unknown := [name for name in given if name not in known]:
            raise UserError(f"{word} {unknown[0]}: expected one of {', '.join(known)}")
    require(model_directory(run, model, recipe.rounds))
    return [
        Job(recipe, run, model, mode, name)
        for name in names or recipe.eval.benchmarks
        for mode in modes
    ]


def default_modes(recipe: Recipe, model: str) -> list[str]:
    if model in bottlenecked(recipe.rounds):
        return ["channel"]
    return BASELINE_MODES.get(model) or (
        recipe.eval.base_modes if model == "base" else recipe.eval.modes
    )
