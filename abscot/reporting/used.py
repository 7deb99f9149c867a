"""Are the traces used? Accuracy of a model with its own traces against that with another problem's,
with its own ones shuffled, and without any, as far as it was asked so; problem by problem.
"""

from dataclasses import dataclass

from abscot.common.table import Table
from abscot.evaluation.statistics import Interval, Summary, paired_difference
from abscot.reporting.run_data import RunData

NONE = "–"
EDITED = ("abstract_swapped", "abstract_permuted")  # modes that put another trace in its place
OTHERS = {
    "abstract_swapped": "another's",
    "abstract_permuted": "shuffled",
    "no_cot": "without",
}
# A difference whose interval ends below is none: what is left open is whether it is smaller.
NEGLIGIBLE = 0.05


@dataclass(frozen=True)
class Against:
    """One model asked twice, over the problems that both have. Shares in 0..1."""

    own: float
    other: float
    difference: Interval  # own - other

    @classmethod
    def of(cls, own: Summary, other: Summary | None) -> "Against | None":
        if other is None or not own.scores.keys() & other.scores.keys():
            return None
        difference, _ = paired_difference(own.scores, other.scores)
        shared = own.scores.keys() & other.scores.keys()
        mean = sum(own.scores[i] for i in shared) / len(shared)
        return cls(mean, mean - difference.value, difference)

    @property
    def falls(self) -> bool:
        """Whether accuracy is lower in the other mode."""
        return self.difference.low > 0

    @property
    def rises(self) -> bool:
        return self.difference.high < 0

    @property
    def stays(self) -> bool:
        """Neither, and no more than NEGLIGIBLE is lost."""
        return not (self.falls or self.rises) and self.difference.high < NEGLIGIBLE


@dataclass(frozen=True)
class Use:
    """A model on a benchmark. others: mode -> the comparison with it."""

    own: Summary
    others: dict[str, Against]

    def sentence(self) -> str | None:
        """Whether the traces are used; None where neither another problem's nor shuffled ones were
        asked.
        """
        swapped, shuffled = (
            self.others.get(f"abstract_{mode}") for mode in ("swapped", "permuted")
        )
        parts = [
            _swapped(swapped)
            if swapped
            else f"Accuracy is {_percent(self.own.accuracy.value)} with its own traces."
        ]
        if without := self.others.get("no_cot"):
            parts.append(_without(without, swapped))
        if shuffled:
            parts.append(_shuffled(shuffled))
        return f"{self.own.benchmark}: {' '.join(parts)}" if swapped or shuffled else None


def _swapped(found: Against) -> str:
    own, other = _percent(found.own), _percent(found.other)
    if found.falls:
        return (
            f"With another problem's trace accuracy falls from {own} to {other}: the traces are "
            "used."
        )
    if found.rises:
        return (
            f"With another problem's trace accuracy rises from {own} to {other}: the traces "
            "mislead."
        )
    if found.stays:
        return f"Accuracy stays at {own} ({other} with another problem's trace): they are not used."
    return (
        f"Accuracy is {own}, with another problem's trace {other} (difference "
        f"{points(found.difference)}): too few problems to say whether the traces are used."
    )


def _without(found: Against, swapped: Against | None) -> str:
    other = _percent(found.other)
    if not found.falls:
        return f"Without a trace it is {other}: nothing shows that traces add to it."
    gain = found.difference.value
    taken = ""
    if swapped and swapped.falls:
        taken = (
            f", of which another problem's trace takes {100 * swapped.difference.value / gain:.0f}%"
        )
    return f"Without a trace it is {other}: the traces add {100 * gain:.1f} points{taken}."


def _shuffled(found: Against) -> str:
    other = _percent(found.other)
    if found.falls:
        return f"Shuffled, it falls to {other}: they are read in their order."
    if found.rises:
        return f"Shuffled, it rises to {other}: their order misleads."
    if found.stays:
        return f"Shuffled, it stays at {other}: their order does not matter."
    return f"Shuffled, it is {other}: too few problems to say whether their order matters."


def of_run(data: RunData) -> list[Use]:
    """Of every model that was asked with its own traces and otherwise too, in the order of the
    results.
    """
    found = []
    for own in (s for s in data.summaries if s.mode == "abstract" and s.accuracy):
        asked = {mode: data.of(mode, own.model, own.benchmark) for mode in OTHERS}
        others = {mode: Against.of(own, other) for mode, other in asked.items()}
        others = {mode: against for mode, against in others.items() if against}
        if others:
            found.append(Use(own, others))
    return found


def sentences(uses: list[Use], model: str) -> list[str]:
    """What is to be said of one model, a line per benchmark."""
    said = [use.sentence() for use in uses if use.own.model == model]
    return [sentence for sentence in said if sentence]


def table(uses: list[Use]) -> Table | None:
    """Each model beside its other modes, with paired differences."""
    modes = [mode for mode in OTHERS if any(mode in use.others for use in uses)]
    rows = []
    for use in uses:
        cells = [_percent(use.own.accuracy.value)]
        for mode in modes:
            against = use.others.get(mode)
            cells += (
                [_percent(against.other), points(against.difference)] if against else [NONE] * 2
            )
        rows.append((use.own.model, use.own.benchmark, str(use.own.problems), *cells))
    columns = ["model", "benchmark", "n", "own trace %"]
    for mode in modes:
        columns += [f"{OTHERS[mode]} %", "difference, points"]
    return Table(tuple(columns), tuple(rows), 2) if rows else None


def points(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
