"""The ladder: the paper's rows and ours on one base and one data set, in one table.

The abstract rows are those of the run and of the runs beside it that follow the other schedules
(pipeline/sibling.py). What is equal: each baseline trains on the answers (Y) of the same rows as
often as all rounds of the run together (with `staging: partition` a phase has its part of the
rows), rounded to whole epochs. Not equal, and shown: another schedule may train on more or fewer,
and a phase may end early (train.until_channel); Abstract-CoT and SFT (CoT) are supervised on Z or C
as well; the rounds restart the learning rate schedule with each phase where a baseline has one
schedule over all its steps.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from abscot.common.errors import UserError
from abscot.common.table import Table
from abscot.evaluation.modes import CHANNEL
from abscot.evaluation.statistics import Interval, Summary, paired_difference
from abscot.method.lineage import answers_per_row, baseline_epochs, round_model, trainings_of
from abscot.method.phases import baselines, loop
from abscot.method.schedules import CUSTOM, SCHEDULES, loop_epochs, schedule_of
from abscot.pipeline.sibling import siblings
from abscot.recipe.run import Run, difference
from abscot.recipe.schema import Recipe
from abscot.reporting import published
from abscot.reporting.run_data import RunData, read
from abscot.reporting.used import points

NONE = "–"
BASE_LABELS = {"verbal": "verbal CoT", "thinking": "verbal CoT (thinking)", "no_cot": "no CoT"}
ORDER = (*SCHEDULES, CUSTOM)  # of the abstract rows


@dataclass(frozen=True)
class Ladder:
    """A run, the runs of other schedules beside it, and in a line each what lies there and is of
    another recipe.
    """

    own: RunData
    beside: tuple[RunData, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def runs(self) -> list[RunData]:
        """All runs, in the order of the rows."""
        return sorted((self.own, *self.beside), key=lambda d: ORDER.index(schedule_of(d.recipe)))

    @property
    def is_there(self) -> bool:
        """Whether a baseline was evaluated, or another schedule begun: else the results table says
        it all.
        """
        return bool(self.beside or _baselines_of(self.own))


@dataclass(frozen=True)
class Row:
    """One row of the table: a model of a run in a mode. trained: the trainings behind it, after the
    base, in order.
    """

    label: str
    mode: str
    model: str
    data: RunData
    trained: tuple[str, ...] = ()

    def asked(self, benchmark: str, mode: str | None = None) -> Summary | None:
        """Its result, if it was scored."""
        found = self.data.of(mode or self.mode, self.model, benchmark)
        return found if found and found.accuracy else None

    def edited(self, benchmark: str, mode: str) -> float | None:
        """Its accuracy, 0..1, behind a trace that was changed as `mode` says."""
        found = self.asked(benchmark, mode) if self.mode == "abstract" else None
        return found.accuracy.value if found else None

    def spent(self) -> tuple[int, int] | None:
        """(answers trained on, supervised tokens), as its train logs count them."""
        logs = [self.data.logs[tag].steps for tag in self.trained if tag in self.data.logs]
        if not self.trained or len(logs) < len(self.trained):
            return None
        steps = [step for log in logs for step in log]
        return sum(s.examples for s in steps), sum(s.supervised_tokens for s in steps)


def read_ladder(own: RunData) -> Ladder:
    """The run's data, with those of the runs beside it as far as they are. Raises UserError as
    `run_data.read` does.
    """
    try:
        recipes = siblings(own.recipe)
    except UserError:  # a name so long that no run can be beside it
        recipes = []
    beside, left_out = [], []
    for recipe in recipes:
        if not (run := Run.of(recipe)).config.is_file():
            continue
        data = read(run)
        if found := difference(data.recipe, recipe):
            left_out.append(f"{run.root} is of another recipe ({found}): its rows are left out.")
        else:
            beside.append(data)
    return Ladder(own, tuple(beside), tuple(left_out))


def ladder_rows(ladder: Ladder) -> list[Row]:
    """The base in the modes that the recipe asks it in, the baselines, every round's model of each
    schedule.
    """
    own = ladder.own
    rows = [
        Row(f"{label}, base", mode, "base", own)
        for mode, label in BASE_LABELS.items()
        if mode in own.recipe.eval.base_modes
    ]
    shown = {*own.recipe.baselines, *_baselines_of(own)}
    rows += [
        Row(p.label, p.asked_in, p.name, own, (p.name,)) for p in baselines() if p.name in shown
    ]
    for data in ladder.runs:
        recipe, trained = data.recipe, ()
        for round_ in range(1, recipe.rounds + 1):
            trained += tuple(training.tag for training in trainings_of(recipe, data.run, round_))
            model = round_model(recipe, data.run, round_).name
            rows.append(Row(f"{_label(recipe)}, round {round_}", "abstract", model, data, trained))
    return rows


def _label(recipe: Recipe) -> str:
    return f"Abstract-CoT ({schedule_of(recipe)})"


def _baselines_of(data: RunData) -> set[str]:
    return {s.model for s in data.summaries} & {phase.name for phase in baselines()}


def equalised(recipe: Recipe, beside: Sequence[Recipe] = ()) -> str:
    """What the recipes plan, in one line: how often each answer is trained on."""
    plans = [_plan(each) for each in (recipe, *beside)]
    given = []
    for phase in baselines():
        why = " (train.phase_epochs)" if phase.name in recipe.train.phase_epochs else ""
        given.append(f"{phase.name} {baseline_epochs(recipe, phase)}{why}")
    each = "each answer" if recipe.staging == "reuse" else "each answer, in its part of the data,"
    return (
        f"How often {each} is trained on: {'; '.join(plans)}; the baselines as often as "
        f"{_label(recipe)}, in whole epochs: {', '.join(given)}."
    )


def _plan(recipe: Recipe) -> str:
    """`Abstract-CoT (grounded) 6 times in 3 rounds (epochs of A 2, 0, 0; of B 2, 1, 1)`."""
    rounds = range(1, recipe.rounds + 1)
    epochs = (
        f"{phase.name} {', '.join(str(loop_epochs(recipe, phase, r)) for r in rounds)}"
        for phase in loop()
    )
    share, hides = recipe.train.until_channel, [phase.name for phase in loop() if phase.hidden]
    early = f"; {' and '.join(hides)} may end early, at a channel of {share:.0%}" if share else ""
    times = f"{answers_per_row(recipe):g} times in {recipe.rounds} round{'s' * (recipe.rounds > 1)}"
    at_most = "at most " if share else ""
    return f"{_label(recipe)} {at_most}{times} (epochs of {'; of '.join(epochs)}{early})"


@dataclass(frozen=True)
class Entry:
    """One row on one benchmark. difference: to SFT (no CoT), paired."""

    row: Row
    benchmark: str
    found: Summary | None
    swapped: float | None
    permuted: float | None
    difference: Interval | None


def entries(ladder: Ladder) -> list[Entry]:
    made, rows = [], ladder_rows(ladder)
    for benchmark in ladder.own.recipe.eval.benchmarks:
        reference = ladder.own.of("no_cot", "sft_no_cot", benchmark)
        for row in rows:
            found = row.asked(benchmark)
            edited = (row.edited(benchmark, f"abstract_{how}") for how in ("swapped", "permuted"))
            made.append(Entry(row, benchmark, found, *edited, _paired(found, reference)))
    return made


def _paired(of: Summary | None, against: Summary | None) -> Interval | None:
    if not of or not against or of is against or not of.scores.keys() & against.scores.keys():
        return None
    return paired_difference(of.scores, against.scores)[0]


def ladder_table(ladder: Ladder) -> Table:
    """One line per row and benchmark."""
    columns = (
        "row",
        "benchmark",
        "n",
        "accuracy %",
        "95% interval",
        "any %",
        "swapped %",
        "shuffled %",
        "against SFT (no CoT)",
        "reasoning",
        "total",
        "answers",
        "supervised",
    )
    shown = published.any_beside(ladder.own.recipe.eval.benchmarks)
    lines = []
    for entry in entries(ladder):
        row, benchmark, found = entry.row, entry.benchmark, entry.found
        spent = [f"{n:,}" for n in row.spent() or ()] or [NONE, NONE]
        beside = published.beside(row.mode, row.model, benchmark)
        behind = (*spent, *[beside or NONE] * shown)
        if found is None:
            lines.append((row.label, benchmark, "missing", *[NONE] * 8, *behind))
            continue
        edited = [NONE if x is None else f"{100 * x:.1f}" for x in (entry.swapped, entry.permuted)]
        against = points(entry.difference) if entry.difference else NONE
        tokens = (f"{found.reasoning_tokens:.1f}", f"{found.total_tokens.value:.1f}")
        right = (str(found.problems), *_percent(found.accuracy), f"{100 * found.accuracy_any:.1f}")
        lines.append((row.label, benchmark, *right, *edited, against, *tokens, *behind))
    missing = frozenset(i for i, cells in enumerate(lines) if cells[2] == "missing")
    return Table((*columns, *[published.COLUMN] * shown), tuple(lines), 2, missing)


def json_rows(ladder: Ladder) -> str:
    """The same, one JSON object a line: accuracies and differences in percent, what was not asked
    null.
    """
    return "\n".join(json.dumps(_object(entry)) for entry in entries(ladder))


def _object(entry: Entry) -> dict[str, str | int | float | None]:
    row, found = entry.row, entry.found
    accuracy, (answers, supervised) = found and found.accuracy, row.spent() or (None, None)
    return {
        "label": row.label,
        "benchmark": entry.benchmark,
        "accuracy": _hundredths(accuracy and accuracy.value),
        "low": _hundredths(accuracy and accuracy.low),
        "high": _hundredths(accuracy and accuracy.high),
        "tokens": found and round(found.total_tokens.value, 2),
        "reasoning_tokens": found and round(found.reasoning_tokens, 2),
        "swapped": _hundredths(entry.swapped),
        "permuted": _hundredths(entry.permuted),
        "difference": _hundredths(entry.difference and entry.difference.value),
        "difference_low": _hundredths(entry.difference and entry.difference.low),
        "difference_high": _hundredths(entry.difference and entry.difference.high),
        "n": found and found.problems,
        "answers": answers,
        "supervised_tokens": supervised,
        "run": row.data.run.root.name,
        "model": row.model,
        "mode": row.mode,
    }


def _hundredths(share: float | None) -> float | None:
    """0..1 -> percent."""
    return None if share is None else round(100 * share, 2)


def schedules_table(ladder: Ladder) -> Table | None:
    """The schedules against each other after their last rounds, problem by problem."""
    lines = []
    for benchmark in ladder.own.recipe.eval.benchmarks:
        for old, new in itertools.combinations(ladder.runs, 2):
            last = [round_model(d.recipe, d.run, d.recipe.rounds).name for d in (new, old)]
            asked = (d.of("abstract", m, benchmark) for d, m in zip((new, old), last, strict=True))
            if (found := _paired(*asked)) is not None:
                names = [f"{_label(d.recipe)}, round {d.recipe.rounds}" for d in (new, old)]
                lines.append((benchmark, *names, *points(found).split(" ", 1)))
    columns = ("benchmark", "of", "against", "difference, points", "95% interval")
    return Table(columns, tuple(lines), 3) if lines else None


def channel_table(ladder: Ladder) -> Table | None:
    """Per schedule and round: the answer with the CoT behind the mask, the answer without any CoT,
    and the gap between the two.
    """
    lines = []
    for data in ladder.runs:
        for channel in (s for s in data.scored if s.mode == CHANNEL):
            model = round_model(data.recipe, data.run, channel.round).name
            without = data.of("abstract", model, channel.benchmark)
            gap = NONE, NONE, NONE
            if (found := _paired(channel, without)) is not None:
                shared = channel.scores.keys() & without.scores.keys()
                mean = sum(without.scores[i] for i in shared) / len(shared)
                gap = (f"{100 * mean:.1f}", *points(found).split(" ", 1))
            asked = (str(channel.round), channel.benchmark, str(channel.problems))
            lines.append((schedule_of(data.recipe), *asked, *_percent(channel.accuracy), *gap))
    columns = (
        "schedule",
        "round",
        "benchmark",
        "n",
        "channel %",
        "95% interval",
        "without CoT %",
        "gap, points",
        "its interval",
    )
    return Table(columns, tuple(lines), 3) if lines else None


def _percent(interval: Interval) -> tuple[str, str]:
    return f"{100 * interval.value:.1f}", f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
