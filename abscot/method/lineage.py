"""Lineage: which model a training starts from, which one makes its traces, where its own goes.

    base -> A -> B = round1 -> A -> B = round2 -> A -> B = final      the loop, here of three rounds
    base -> sft_no_cot,  base -> sft_cot,  base -> pause              the baselines, each once

All of it follows from the order of the phase table and from the schedule (schedules.py). A phase of
the loop starts from the model of the training before it, across rounds; that model makes its
traces, where the schedule lets a model make them. The last phase of a round makes the round's
model. A phase without epochs is left out. A baseline starts from the base.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from abscot.common.draws import rng
from abscot.common.errors import UserError
from abscot.common.files import is_done
from abscot.method.phases import PHASES, Phase, baselines, loop
from abscot.method.schedules import (
    GROUNDED,
    MODEL_WITH_COT,
    SAMPLED,
    check_channel_rows,
    given_epochs,
    loop_epochs,
    trace_source,
)
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


@dataclass(frozen=True)
class Training:
    """One training of a run: a phase of the loop in one of its rounds (from 1), or a baseline."""

    recipe: Recipe
    run: Run
    phase: Phase
    round: int

    @property
    def tag(self) -> str:
        """The name of its files: `pi2_phaseA`, or the plain name of a baseline."""
        return self.phase.tag(self.round)

    @property
    def title(self) -> str:
        """For people: `round 2 A`, or the plain name of a baseline."""
        return f"round {self.round} {self.phase.name}" if self.phase.iterated else self.phase.name

    @property
    def before(self) -> "Training | None":
        """The training whose model this one starts from; None where that is the base."""
        order = trainings(self.recipe, self.run) if self.phase.iterated else []
        places = [(t.round, t.phase) for t in order]
        place = places.index((self.round, self.phase)) if order else 0
        return order[place - 1] if place else None

    @property
    def start(self) -> Path:
        """The model that it starts from."""
        return self.before.export if self.before else self.run.base

    @property
    def trace_source(self) -> str | None:
        """Where its traces come from, by the names of schedules.py; None where it reads none."""
        return trace_source(self.recipe, self.phase, self.round) if self.reads_traces else None

    @property
    def trace_model(self) -> Path | None:
        """The model that samples its traces; None where no model does."""
        return self.before.export if self.trace_source in SAMPLED else None

    @property
    def traces_see_cot(self) -> bool:
        """Are its traces made with the CoT in sight, where a model samples them?"""
        return self.phase.sees_cot or self.trace_source == MODEL_WITH_COT

    @property
    def trace_maker(self) -> Path | None:
        """What its traces are made with: a model, or the codebook; None for random traces."""
        return self.run.codebook if self.trace_source == GROUNDED else self.trace_model

    @property
    def reads_traces(self) -> bool:
        return self.phase.trace_source == "model"

    @property
    def measures_channel(self) -> bool:
        """Its answers see nothing of the CoT but its traces, and rows are kept to measure that."""
        return self.reads_traces and bool(self.phase.hidden) and self.recipe.train.channel_rows > 0

    @property
    def ends_round(self) -> bool:
        return self.phase.iterated and self == trainings_of(self.recipe, self.run, self.round)[-1]

    @property
    def export(self) -> Path:
        """Where its full model goes: the round's model, or a place among its checkpoints."""
        if self.ends_round:
            return round_model(self.recipe, self.run, self.round)
        return self.checkpoints / "export"

    def intermediate(self, step: int) -> Path:
        """Where its model after `step` steps goes, if it is exported on its way."""
        return self.run.root / "intermediate" / f"{self.tag}_step{step}"

    def exported_steps(self) -> list[int]:
        """The steps whose models are there, ascending."""
        folder = self.intermediate(0).parent
        steps = (step_of(path.name) for path in folder.glob(f"{self.tag}_step*"))
        return sorted(s for s in steps if s is not None and is_done(self.intermediate(s)))

    @property
    def adapter(self) -> Path | None:
        """Where its adapter goes; None without LoRA."""
        return self.run.adapter(self.tag) if self.recipe.lora else None

    @property
    def inputs(self) -> list[Path]:
        """What must be there before it begins."""
        return [self.run.shards, self.start, *([self.traces] if self.reads_traces else [])]

    @property
    def outputs(self) -> list[Path]:
        return [self.export, *filter(None, [self.adapter])]

    @property
    def traces(self) -> Path:
        """The trace set that it reads."""
        return self.run.traces(self.tag)

    @property
    def checkpoints(self) -> Path:
        return self.run.checkpoints(self.tag)

    @property
    def train_log(self) -> Path:
        return self.run.train_log(self.tag)

    @property
    def plan_file(self) -> Path:
        return self.run.plan_of(self.tag)

    @property
    def peak_lr(self) -> float:
        return self.recipe.train.phase_lr.get(self.phase.name, self.recipe.train.lr)

    @property
    def epochs(self) -> int:
        if self.phase.iterated:
            return loop_epochs(self.recipe, self.phase, self.round)
        return baseline_epochs(self.recipe, self.phase)

    def rows(self, num_rows: int) -> np.ndarray:
        """The rows of the store that it trains on, int64, ascending: none of `channel_rows`.

        `reuse`: all, in every training. `partition` (paper): D is the union of disjoint D_{t,1} and
        D_{t,2}, drawn by the seed, one per training of each round t. The baselines, trained once,
        have all of D.
        """
        rows = np.setdiff1d(np.arange(num_rows), channel_rows(self.recipe, num_rows))
        if self.recipe.staging == "reuse" or not self.phase.iterated:
            return rows
        order = trainings(self.recipe, self.run)
        parts = np.array_split(rng("staging", self.recipe.seed).permutation(rows), len(order))
        return np.sort(parts[order.index(self)])

    def trace_rows(self, num_rows: int) -> np.ndarray:
        """The rows that its trace set covers: those it trains on, and those on which it measures
        the channel.
        """
        measured = channel_rows(self.recipe, num_rows) if self.measures_channel else []
        return np.union1d(self.rows(num_rows), measured).astype(np.int64)


def channel_rows(recipe: Recipe, num_rows: int) -> np.ndarray:
    """The rows of the store that no phase trains on (train.channel_rows), int64, ascending. Raises
    UserError where they are all.
    """
    check_channel_rows(recipe, num_rows)
    drawn = rng("channel rows", recipe.seed).permutation(num_rows)
    return np.sort(drawn[: recipe.train.channel_rows])


def trainings(recipe: Recipe, run: Run) -> list[Training]:
    """The trainings of all rounds, in order."""
    return [t for round_ in range(1, recipe.rounds + 1) for t in trainings_of(recipe, run, round_)]


def trainings_of(recipe: Recipe, run: Run, round_: int) -> list[Training]:
    """The trainings of one round, in order."""
    made = [Training(recipe, run, phase, round_) for phase in loop()]
    return [training for training in made if training.epochs]


def training_of(recipe: Recipe, run: Run, name: str, round_: int) -> Training:
    """The training that --phase and --round mean. Raises UserError where there is no such phase or
    round, and where the schedule leaves the phase out of it.
    """
    if name not in PHASES:
        raise UserError(f"--phase {name}: expected one of {', '.join(PHASES)}")
    if not 1 <= round_ <= recipe.rounds:
        raise UserError(f"--round {round_}: expected 1 to {recipe.rounds} (rounds in the recipe)")
    training = Training(recipe, run, PHASES[name], round_)
    if not training.epochs:
        trained = ", ".join(t.title for t in trainings(recipe, run))
        raise UserError(
            f"--phase {name} --round {round_}: the schedule leaves it out (0 epochs); expected one "
            f"of {trained}, or epochs of it in train.phase_epochs"
        )
    return training


def baseline_trainings(recipe: Recipe, run: Run) -> list[Training]:
    made = [Training(recipe, run, phase, 1) for phase in baselines()]
    return [training for training in made if training.epochs]


def listed_baselines(recipe: Recipe, run: Run) -> list[Training]:
    """Those that are part of the run (recipe.baselines)."""
    return [t for t in baseline_trainings(recipe, run) if t.tag in recipe.baselines]


def baseline_epochs(recipe: Recipe, phase: Phase) -> int:
    """Epochs of a baseline over its rows: train.phase_epochs, else as many as make it train on as
    many answers as all rounds together, rounded to whole ones.

    The rows of the ladder then differ in what stands before an answer, not in how often a model has
    seen it.
    """
    given = given_epochs(recipe, phase, 1)
    return max(1, round(answers_per_row(recipe))) if given is None else given


def answers_per_row(recipe: Recipe) -> float:
    """How often the rounds train on the answer of a row of the store, in the mean."""
    order = [
        loop_epochs(recipe, phase, round_)
        for round_ in range(1, recipe.rounds + 1)
        for phase in loop()
    ]
    trained = [epochs for epochs in order if epochs]
    return sum(trained) / (len(trained) if recipe.staging == "partition" else 1)


def round_model(recipe: Recipe, run: Run, round_: int) -> Path:
    """The model a round ends with: round1/, round2/, .., and final/ for the last; round
    0: base/.
    """
    if round_ == 0:
        return run.base
    return run.root / ("final" if round_ == recipe.rounds else f"round{round_}")


@dataclass(frozen=True)
class Model:
    """A model that evaluation can ask. round: 0 for the base, None for a baseline and for a model
    from elsewhere. modes: those in which it is asked where nothing else is said.

    Of a model from elsewhere: its fingerprint, source (the path or hub id that was given), and the
    abstract tokens that it lacks.
    """

    name: str
    directory: Path
    round: int | None
    modes: tuple[str, ...]
    fingerprint: str | None = None
    source: str | None = None
    missing_tokens: tuple[str, ...] = ()


def round_models(recipe: Recipe, run: Run) -> list[Model]:
    """The base and the model of each round."""
    directories = [round_model(recipe, run, round_) for round_ in range(recipe.rounds + 1)]
    asked = [recipe.eval.base_modes] + [recipe.eval.modes] * recipe.rounds
    return [
        Model(path.name, path, round_, tuple(modes))
        for round_, (path, modes) in enumerate(zip(directories, asked, strict=True))
    ]


def run_models(recipe: Recipe, run: Run) -> list[Model]:
    """The models that the run's own stages ask: those of its rounds, and its baselines."""
    return [*round_models(recipe, run), *map(_model, listed_baselines(recipe, run))]


def phase_models(recipe: Recipe, run: Run) -> list[Model]:
    """What the phases inside a round make, by their tags, and the baselines."""
    inside = [t for t in trainings(recipe, run) if not t.ends_round]
    return [_model(t) for t in (*inside, *baseline_trainings(recipe, run))]


def intermediate_models(recipe: Recipe, run: Run) -> list[Model]:
    """The models that trainings have exported on their way, as far as they are there."""
    return [
        replace(_model(t), name=path.name, directory=path)
        for t in (*trainings(recipe, run), *baseline_trainings(recipe, run))
        for path in map(t.intermediate, t.exported_steps())
    ]


def step_of(name: str) -> int | None:
    """The step of a model that was exported on the way of a training; None for another model's
    name.
    """
    found = re.fullmatch(r".+_step([1-9]\d{0,11})", name)
    return int(found[1]) if found else None


def _model(training: Training) -> Model:
    """What a training makes, by its tag, asked as its phase is."""
    asked_in = training.phase.asked_in
    modes = (asked_in,) if asked_in else tuple(training.recipe.eval.modes)
    round_ = training.round if training.phase.iterated else None
    return Model(training.tag, training.export, round_, modes)


def models_by_name(recipe: Recipe, run: Run) -> dict[str, Model]:
    """Every model that the run has a name for."""
    plain = (*round_models(recipe, run), *phase_models(recipe, run))
    return {model.name: model for model in (*plain, *intermediate_models(recipe, run))}


def model_named(recipe: Recipe, run: Run, name: str, or_all: bool = True) -> Model | None:
    """The model that `--model name` means; None where that is a path or hub id of a model from
    elsewhere. Raises UserError for a name that can be neither; or_all: it could have been `all`.
    """
    models = models_by_name(recipe, run)
    elsewhere = "/" in name or (name and os.path.isdir(name))
    if name not in models and not elsewhere:
        raise UserError(
            f"--model {name}: expected {'all, ' * or_all}one of {', '.join(models)}, or a "
            "directory or hub id of another model"
        )
    return models.get(name)
