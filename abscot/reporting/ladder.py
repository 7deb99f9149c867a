"""The ladder: the paper's rows on one base and one data set, trained on equally many answers, in
one table.

What is equal: each baseline trains on the answers (Y) of the same rows as often as all rounds
together (rounds x (epochs of A + epochs of B); with `staging: partition` a phase has its part of
the rows), rounded to whole epochs, so that the supervised Y tokens agree. Not equal, and shown:
Abstract-CoT and SFT (CoT) are supervised on Z or C as well, and the rounds restart the learning
rate schedule with each phase where a baseline has one schedule over all its steps.
"""

from dataclasses import dataclass

from abscot.common.table import Table
from abscot.evaluation.statistics import Interval, paired_difference
from abscot.method.lineage import answers_per_row, baseline_epochs, round_model, trainings_of
from abscot.method.phases import baselines
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe
from abscot.reporting import published
from abscot.reporting.run_data import RunData
from abscot.reporting.used import points

NONE = "–"
BASE_LABELS = {"verbal": "verbal CoT", "thinking": "thinking", "no_cot": "no CoT"}


@dataclass(frozen=True)
class Row:
    """One row of the table. trained: the phases that its model went through after the base, in
    order.
    """

    label: str
    mode: str
    model: str
    trained: tuple[str, ...] = ()


def ladder_rows(recipe: Recipe, run: Run) -> list[Row]:
    """The base in the modes that the recipe asks it in, the baselines, every round's model."""
    made = [
        Row(f"{label}, base", mode, "base")
        for mode, label in BASE_LABELS.items()
        if mode in recipe.eval.base_modes
    ]
    made += [Row(p.label, p.asked_in, p.name, (p.name,)) for p in baselines()]
    trained: tuple[str, ...] = ()
    for round_ in range(1, recipe.rounds + 1):
        trained += tuple(training.tag for training in trainings_of(recipe, run, round_))
        model = round_model(recipe, run, round_).name
        made.append(Row(f"Abstract-CoT, round {round_}", "abstract", model, trained))
    return made


def equalised(recipe: Recipe) -> str:
    """What the rows share, in one line, with what rounding to whole epochs has changed."""
    asked, lines = answers_per_row(recipe), []
    for phase in baselines():
        why = " (train.phase_epochs)" if phase.name in recipe.train.phase_epochs else ""
        lines.append(f"{phase.name} {baseline_epochs(recipe, phase)}{why}")
    each = "each answer" if recipe.staging == "reuse" else "each answer, in its part of the data,"
    times = f"{asked:g} times by {recipe.rounds} round{'s' * (recipe.rounds > 1)}"
    return f"Equal: how often {each} is trained on: {times}; epochs of {', '.join(lines)}."


def ladder_table(data: RunData) -> Table:
    """One line per row and benchmark. `answers` and `supervised` are what the train logs say was
    spent after the base.
    """
    columns = (
        "row",
        "benchmark",
        "n",
        "accuracy %",
        "95% interval",
        "any %",
        "against SFT (no CoT)",
        "reasoning",
        "total",
        "answers",
        "supervised",
    )
    shown = published.any_beside(data.recipe.eval.benchmarks)
    columns, cells = (*columns, *[published.COLUMN] * shown), []
    for benchmark in data.recipe.eval.benchmarks:
        reference = data.of("no_cot", "sft_no_cot", benchmark)
        for row in ladder_rows(data.recipe, data.run):
            found = data.of(row.mode, row.model, benchmark)
            beside = published.beside(row.mode, row.model, benchmark) or NONE
            behind = (*_spent(data, row), *[beside] * shown)
            if found is None or found.accuracy is None:
                cells.append((row.label, benchmark, "missing", *[NONE] * 6, *behind))
                continue
            difference = NONE
            if (
                reference
                and reference is not found
                and reference.scores.keys() & found.scores.keys()
            ):
                difference = points(paired_difference(found.scores, reference.scores)[0])
            tokens = (f"{found.reasoning_tokens:.1f}", f"{found.total_tokens.value:.1f}")
            any_ = f"{100 * found.accuracy_any:.1f}"
            right = (str(found.problems), *_percent(found.accuracy), any_, difference)
            cells.append((row.label, benchmark, *right, *tokens, *behind))
    return Table(
        columns, tuple(cells), 2, frozenset(i for i, c in enumerate(cells) if c[2] == "missing")
    )


def _spent(data: RunData, row: Row) -> tuple[str, str]:
    """(answers trained on, supervised tokens) of all the phases behind a row."""
    logs = [data.logs[tag].steps for tag in row.trained if tag in data.logs]
    if not row.trained or len(logs) < len(row.trained):
        return NONE, NONE
    steps = [step for log in logs for step in log]
    answers, supervised = (
        sum(getattr(step, name) for step in steps) for name in ("examples", "supervised_tokens")
    )
    return f"{answers:,}", f"{supervised:,}"


def channel_table(data: RunData) -> Table | None:
    """Per round: the answer with the CoT behind the mask, the answer without any CoT, and the gap
    between the two.
    """
    cells = []
    for channel in (s for s in data.scored if s.mode == "channel"):
        without = data.of(
            "abstract",
            round_model(data.recipe, data.run, channel.round).name,
            channel.benchmark,
        )
        gap = NONE, NONE, NONE
        if without and without.scores.keys() & channel.scores.keys():
            shared = channel.scores.keys() & without.scores.keys()
            mean = sum(without.scores[i] for i in shared) / len(shared)
            gap = (
                f"{100 * mean:.1f}",
                *points(paired_difference(channel.scores, without.scores)[0]).split(" ", 1),
            )
        with_cot = _percent(channel.accuracy)
        cells.append(
            (str(channel.round), channel.benchmark, str(channel.problems), *with_cot, *gap)
        )
    columns = (
        "round",
        "benchmark",
        "n",
        "channel %",
        "95% interval",
        "without CoT %",
        "gap, points",
        "its interval",
    )
    return Table(columns, tuple(cells), 2) if cells else None


def is_run(data: RunData) -> bool:
    """Whether a baseline was evaluated: only then is there a ladder to show."""
    return any(s.model in {p.name for p in baselines()} for s in data.summaries)


def _percent(interval: Interval) -> tuple[str, str]:
    return f"{100 * interval.value:.1f}", f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
