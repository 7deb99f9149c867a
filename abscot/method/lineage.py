"""Which model comes from which: start, trace model, export, tag, epochs and rows of a phase."""

from pathlib import Path

import numpy as np

from abscot.common.draws import rng
from abscot.common.errors import UserError
from abscot.method.phases import ITERATED, PHASES, Phase
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

BASELINE_MODES = {"sft_cot": ["verbal"], "sft_no_cot": ["no_cot"], "pause": ["pause"]}


def model_names(recipe: Recipe) -> list[str]:
    return ["base", *(f"round{r}" for r in range(1, recipe.rounds)), "final"]


def model_directory(run: Run, model: str, rounds: int) -> Path:
    """base/, roundN/, final/, or the export of a phase: pi1_phaseA, sft_cot. Raises UserError for
    any other name.
    """
    round_ = round_of(model, rounds)
    is_phase = model in BASELINE_MODES or model in bottlenecked(rounds)
    return run.export(model, round_, rounds) if is_phase else run.round_model(round_, rounds)


def bottlenecked(rounds: int) -> dict[str, int]:
    """The models of phase A, which mode `channel` asks, and their rounds."""
    return {PHASES["A"].tag(r): r for r in range(1, rounds + 1)}


def round_of(model: str, rounds: int) -> int | None:
    """The round a model belongs to; 0: base, None: a baseline. Raises UserError for a name that is
    no model's.
    """
    names = {
        "base": 0,
        **{f"round{r}": r for r in range(1, rounds)},
        "final": rounds,
        **bottlenecked(rounds),
    }
    if model not in names and model not in BASELINE_MODES:
        raise UserError(
            f"--model {model}: expected all or one of {', '.join([*names, *BASELINE_MODES])}"
        )
    return names.get(model)


BASELINES = ("sft_no_cot", "sft_cot", "pause")


def rows_of_phase(recipe: Recipe, phase: Phase, round_: int, num_rows: int) -> np.ndarray:
    """The rows of the store that a phase of a round trains on, int64, ascending.

    `reuse`: all, in every phase. `partition` (paper): D is the union of disjoint D_{t,1} and
    D_{t,2}, drawn by the seed; phase A of round t has D_{t,1}, phase B has D_{t,2}. The baselines,
    trained once, have all of D.
    """
    if recipe.staging == "reuse" or not phase.iterated:
        return np.arange(num_rows)
    parts = np.array_split(
        rng("staging", recipe.seed).permutation(num_rows), len(ITERATED) * recipe.rounds
    )
    return np.sort(parts[len(ITERATED) * (round_ - 1) + ITERATED.index(phase.name)])


def epochs_of(recipe: Recipe, phase: Phase) -> int:
    """Epochs of one training of `phase` over its rows: phase_epochs, else `train.epochs` for the
    phases of a round.

    A baseline is trained once, on as many answers as all rounds together, rounded to whole epochs:
    the rows of the ladder then differ in what stands before an answer, not in how often a model has
    seen it.
    """
    train = recipe.train
    if phase.iterated or phase.name in train.phase_epochs:
        return train.phase_epochs.get(phase.name, train.epochs)
    return max(1, round(answers_a_row(recipe)))


def answers_a_row(recipe: Recipe) -> float:
    """How often the rounds train on the answer of a row of the store, in the mean."""
    share = 1 / (len(ITERATED) * recipe.rounds) if recipe.staging == "partition" else 1
    return recipe.rounds * share * sum(epochs_of(recipe, PHASES[name]) for name in ITERATED)


def source_model(recipe: Recipe, run: Run, round_: int, phase: str) -> Path | None:
    """The model that makes a phase's traces: phase A asks the last round's, phase B the one phase A
    just made.
    """
    if phase == "A" and round_ == 1:
        return None
    if phase == "A":
        return run.round_model(round_ - 1, recipe.rounds)
    return run.export(PHASES["A"].tag(round_), round_, recipe.rounds)
