"""Which result files there are to make: a job is a model asked one benchmark in one mode."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from abscot.common.errors import UserError
from abscot.common.files import fingerprint, require, sha256_file
from abscot.evaluation.benchmarks import BENCHMARKS, Problem
from abscot.evaluation.modes import (
    MODES,
    Question,
    answer_tokens,
    questions_of,
    reasoning_tokens,
    trace_rules,
)
from abscot.evaluation.results import (
    Identity,
    meta_file,
    read_meta,
    read_result,
    result_name,
    rows_file,
)
from abscot.method.lineage import Model, model_named
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


@dataclass(frozen=True)
class Job:
    """One result file: a model asked one benchmark in one mode."""

    recipe: Recipe
    run: Run
    model: Model
    mode: str
    benchmark: str

    @property
    def name(self) -> str:
        return result_name(self.mode, self.model.name, self.benchmark)

    @property
    def result(self) -> Path:
        return rows_file(self.run, self.name)

    @property
    def meta(self) -> Path:
        return meta_file(self.run, self.name)

    def partial(self, sample: int) -> Path:
        """What has been generated of one sample per problem; another model or other settings have
        another file.
        """
        text = json.dumps(self.identity().model_dump(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.run.results / f".{self.name}.{digest}.{sample}.partial"

    @property
    def samples(self) -> list[int]:
        """Samples per problem. A job with a bottleneck is greedy: one."""
        return list(range(1 if MODES[self.mode].cot else self.recipe.eval.samples))

    def questions(self, problems: list[Problem]) -> list[Question]:
        """Raises UserError for a mode that needs another problem where there is none."""
        key = (self.recipe.seed, self.benchmark)
        return questions_of(problems[: self.limit], self.mode, self.samples, key)

    def identity(self) -> Identity:
        config, mode = self.recipe.eval, MODES[self.mode]
        rules = trace_rules(self.recipe, self.mode)
        return Identity(
            mode=self.mode,
            round=self.model.round,
            model=self.model.name,
            benchmark=self.benchmark,
            model_fingerprint=self.model.fingerprint or fingerprint(self.model.directory),
            seed=self.recipe.seed,
            samples=len(self.samples),
            limit=self.limit,
            max_reasoning_tokens=reasoning_tokens(config, self.mode),
            max_answer_tokens=answer_tokens(config, self.mode),
            answer_temperature=0.0 if mode.cot else config.answer_temperature,
            answer_top_p=1.0 if mode.cot else config.answer_top_p,
            trace_temperature=rules.temperature if mode.trace == "model" else None,
            trace_top_p=rules.top_p if mode.trace == "model" else None,
            m_min=rules.m_min if mode.trace == "model" else None,
            m_max=rules.m_max if mode.trace else None,
        )

    @property
    def limit(self) -> int | None:
        """Problems that are asked, the first ones; None: all."""
        limits = [
            self.recipe.eval.limit,
            self.recipe.eval.channel_problems if MODES[self.mode].cot else None,
        ]
        return min((n for n in limits if n is not None), default=None)

    def done(self) -> bool:
        """Whether its result is there and whole. Raises UserError for one that is damaged."""
        if not (self.meta.is_file() and self.result.is_file()):
            return False
        meta = read_meta(self.run, self.name)
        if not meta.agrees_with(self.identity()):
            return False
        if sha256_file(self.result) != meta.rows_sha256:
            read_result(self.run, self.name)  # says what is wrong
        return True


def jobs_of(
    recipe: Recipe, run: Run, model: str, modes: list[str] | None, names: list[str] | None
) -> list[Job]:
    """The jobs of one model: its own modes and the recipe's benchmarks unless others are asked for.
    model: a name of the run, or a directory or hub id.

    Raises UserError for an unknown mode or benchmark, for a model that is not there yet or does not
    load, and for a mode that a model without abstract tokens cannot be asked in.
    """
    names = names or recipe.eval.benchmarks
    asked = model_named(recipe, run, model) or _from_elsewhere(recipe, run, model)
    modes = list(asked.modes) if modes is None else modes
    for word, given, known in (("mode", modes, MODES), ("benchmark", names, BENCHMARKS)):
        if unknown := [name for name in given if name not in known]:
            raise UserError(f"{word} {unknown[0]}: expected one of {', '.join(known)}")
    _check_tokens(asked, modes)
    if asked.source is None:
        require(asked.directory)
    return [Job(recipe, run, asked, mode, name) for name in names for mode in modes]


def _from_elsewhere(recipe: Recipe, run: Run, name: str) -> Model:
    from abscot.model.foreign import open_model  # transformers takes seconds to import

    return open_model(recipe, run, name)


def _check_tokens(model: Model, modes: list[str]) -> None:
    """Raises UserError where a mode writes a trace with tokens that the model does not have."""
    writes = [mode for mode in modes if MODES[mode].trace]
    if model.missing_tokens and writes:
        others = ", ".join(name for name, mode in MODES.items() if not mode.trace)
        raise UserError(
            f"--model {model.source}: its tokenizer has no {model.missing_tokens[0]}, so it cannot "
            f"be asked in mode {writes[0]}; expected --mode {others}"
        )
