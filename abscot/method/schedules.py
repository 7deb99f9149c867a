"""The schedules: where the traces of each phase come from in each round, and how often its rows are
trained on.

    random          codebook tokens drawn by the seed
    grounded        a code for each step of the CoT, from the base's hidden states
    model           sampled from the model of the training before: behind the prompt, and with the
                    CoT in sight where the phase sees it
    model_with_cot  the same with the CoT in sight, for a phase that does not see it: a teacher that
                    does

A row says both round by round; its last entry holds for all rounds that follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from abscot.common.errors import UserError
from abscot.method.phases import PHASES, Phase, loop
from abscot.recipe.schema import Recipe

RANDOM, GROUNDED, MODEL, MODEL_WITH_COT = "random", "grounded", "model", "model_with_cot"
SAMPLED = (MODEL, MODEL_WITH_COT)  # a model writes them


@dataclass(frozen=True)
class Schedule:
    """sources: phase -> where its traces come from, where that is not `model`; epochs: phase ->
    times train.epochs, where it is not once. Both round by round.
    """

    sources: dict[str, tuple[str, ...]]
    epochs: dict[str, tuple[int, ...]]


SCHEDULES = {
    # Section 3 of the paper: random traces to begin with, then the model's own.
    "paper": Schedule(sources={"A": (RANDOM, MODEL)}, epochs={}),
    # One long A that opens the channel, then B alone: going back and forth, B forgets how to write
    # a trace in the CoT's sight. As many answers in three rounds as `paper`.
    "grounded": Schedule(
        sources={"A": (GROUNDED,), "B": (GROUNDED,)}, epochs={"A": (2, 0), "B": (2, 1)}
    ),
}
CUSTOM = "custom"  # a recipe that says itself where the traces of the loop come from
T = TypeVar("T")


def in_round(values: Sequence[T], round_: int) -> T:
    """The entry for a round (from 1) of a list whose last one holds for all that follow."""
    return values[min(round_, len(values)) - 1]


def schedule_of(recipe: Recipe) -> str:
    """The name of the schedule that a recipe follows; CUSTOM where traces.sources changes it."""
    return (
        CUSTOM if {phase.name for phase in loop()} & set(recipe.traces.sources) else recipe.schedule
    )


def trace_source(recipe: Recipe, phase: Phase, round_: int) -> str:
    """Where the traces of a phase of the loop come from."""
    of_schedule = SCHEDULES[recipe.schedule].sources.get(phase.name, (MODEL,))
    return in_round(recipe.traces.sources.get(phase.name, of_schedule), round_)


def given_epochs(recipe: Recipe, phase: Phase, round_: int) -> int | None:
    """What train.phase_epochs says of a phase in one round; None where it does not name it."""
    given = recipe.train.phase_epochs.get(phase.name)
    return in_round(given, round_) if isinstance(given, list) else given


def loop_epochs(recipe: Recipe, phase: Phase, round_: int) -> int:
    """Epochs of a phase of the loop in one round; 0 leaves it out."""
    given = given_epochs(recipe, phase, round_)
    if given is not None:
        return given
    factors = SCHEDULES[recipe.schedule].epochs.get(phase.name, (1,))
    return recipe.train.epochs * in_round(factors, round_)


def check(recipe: Recipe) -> None:
    """Raises UserError for a schedule that cannot be trained: the first line that says so."""
    _check_sources(recipe)
    _check_rounds(recipe)
    _check_rows(recipe)
    trained = [
        (round_, phase)
        for round_ in range(1, recipe.rounds + 1)
        for phase in loop()
        if loop_epochs(recipe, phase, round_)
    ]
    for round_ in range(1, recipe.rounds + 1):
        if round_ not in [r for r, _ in trained]:
            raise UserError(
                f"train.phase_epochs: round {round_} trains no phase; expected 1 epoch or more of "
                f"{' or '.join(p.name for p in loop())}, or fewer rounds"
            )
    round_, phase = trained[0]
    if (source := trace_source(recipe, phase, round_)) in SAMPLED:
        raise UserError(
            f"traces.sources.{phase.name}: the base has not learnt to write traces, so the first "
            f"training (round {round_} {phase.name}) has them from {RANDOM} or {GROUNDED}; "
            f"found {source}"
        )


def _check_sources(recipe: Recipe) -> None:
    for name, sources in recipe.traces.sources.items():
        phase = PHASES[name]
        if phase not in loop():
            raise UserError(
                f"traces.sources.{name}: expected {' or '.join(p.name for p in loop())}; "
                "a baseline reads no traces"
            )
        if MODEL_WITH_COT in sources and phase.sees_cot:
            raise UserError(
                f"traces.sources.{name}: phase {name} sees the CoT, and so does the model that "
                f"writes its traces; expected {MODEL}, found {MODEL_WITH_COT}"
            )


def _check_rounds(recipe: Recipe) -> None:
    """No list has an entry for a round that there is not."""
    lists = {f"traces.sources.{name}": of for name, of in recipe.traces.sources.items()}
    for name, epochs in recipe.train.phase_epochs.items():
        if isinstance(epochs, list):
            lists[f"train.phase_epochs.{name}"] = epochs
    for key, entries in lists.items():
        iterated = PHASES[key.rpartition(".")[2]].iterated
        most = recipe.rounds if iterated else 1
        if len(entries) > most:
            why = "one a round" if iterated else "a baseline is trained once"
            raise UserError(f"{key}: expected at most {most} ({why}), found {len(entries)} of them")


def _check_rows(recipe: Recipe) -> None:
    """As far as it is known before there are shards: some rows are left to train on."""
    known = recipe.data.rows
    if recipe.data.source == "world" and recipe.world:
        known = min(known or recipe.world.rows, recipe.world.rows)
    if known is not None:
        check_channel_rows(recipe, known)


def check_channel_rows(recipe: Recipe, num_rows: int) -> None:
    """Raises UserError where the rows kept for the channel leave none to train on."""
    if 0 < num_rows <= recipe.train.channel_rows:
        raise UserError(
            f"train.channel_rows: expected fewer than the {num_rows:,} rows that there are, so "
            f"that some are trained on; found {recipe.train.channel_rows:,}"
        )
