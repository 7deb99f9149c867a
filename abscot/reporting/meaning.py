"""How much do codes tell of the state? Position by position of a trace, where the world knows the
state after each step of a problem.

A trace of k codes a step has the codes of step i at positions k*i .. k*i + k - 1, each compared
with the state after that step:

    purity  share of traces whose state is the most common one behind their code. It grows with the
            number of codes alone, so beside it stands that of the same codes dealt out at random
    NMI     mutual information of code and state, of the mean of their entropies
    AMI     the same with what chance gives taken off, which NMI too has in few traces: 0 tells
            nothing. Both stay below 1 where several codes mean one state
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from abscot.common.draws import rng
from abscot.common.table import Table
from abscot.generation.trace_records import SET_SCHEMA, TRACES, mend, read_table
from abscot.reporting.run_data import RunData

NONE = "–"
DEALS = 10  # of the codes, whose mean purity is that of chance
WORLD = "world"  # the benchmark of the world's held-out problems


@dataclass(frozen=True)
class Position:
    """All in 0..1."""

    purity: float
    chance: float
    nmi: float
    ami: float


@dataclass(frozen=True)
class Told:
    """What the codes of some traces tell. per_step: codes a step; used: traces of so many, the only
    ones that are looked at, out of `traces`.
    """

    traces: int
    used: int
    per_step: int
    positions: tuple[Position, ...]

    def mean(self, name: str) -> float:
        return float(np.mean([getattr(position, name) for position in self.positions]))


def told(traces: Sequence[Sequence[int]], states: Sequence[str]) -> Told:
    """traces: of codes, by any numbers; states: of each trace's problem, a letter a step.

    Used are those of `codes_a_step`.
    """
    per_step, used = codes_a_step(traces, states)
    longest = max((len(traces[i]) for i in used), default=0)
    positions = []
    for at in range(longest):
        here = [i for i in used if at < len(traces[i])]
        codes, letters = [traces[i][at] for i in here], [states[i][at // per_step] for i in here]
        positions.append(position(codes, letters))
    return Told(len(traces), len(used), per_step, tuple(positions))


def codes_a_step(
    traces: Sequence[Sequence[Hashable]], states: Sequence[str]
) -> tuple[int, list[int]]:
    """(k, the numbers of the traces of k codes a step): k is what most have, among those that have
    the same number for each step; (0, []) where none has.
    """
    whole = [
        len(t) // len(s) if s and len(t) % len(s) == 0 else 0
        for t, s in zip(traces, states, strict=True)
    ]
    counts = Counter(k for k in whole if k)
    per_step = min(counts, key=lambda k: (-counts[k], k), default=0)
    return per_step, [i for i, k in enumerate(whole) if k and k == per_step]


class Mostly(NamedTuple):
    """The state that stands behind a code most often: `times` of the `of` times that it occurs."""

    state: str
    times: int
    of: int


def mostly(
    traces: Sequence[Sequence[Hashable]], states: Sequence[str]
) -> list[dict[Hashable, Mostly]]:
    """code -> what it stands for, for the first code of a step, the second ..: over all positions
    of the traces that `told` looks at, and of two states as common the first by letter.
    """
    per_step, used = codes_a_step(traces, states)
    counts = [defaultdict(Counter) for _ in range(per_step)]
    for i in used:
        for at, code in enumerate(traces[i]):
            counts[at % per_step][code][states[i][at // per_step]] += 1
    return [
        {code: _most_common(of_states) for code, of_states in of_place.items()}
        for of_place in counts
    ]


def _most_common(of_states: Counter) -> Mostly:
    state = min(of_states, key=lambda letter: (-of_states[letter], letter))
    return Mostly(state, of_states[state], of_states.total())


def position(codes: Sequence[int], states: Sequence[str]) -> Position:
    """codes, states: at least one of each, as many of the one as of the other."""
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    code, state = (np.unique(x, return_inverse=True)[1] for x in (codes, states))
    draw = rng("meaning", len(code))
    by_chance = [purity(draw.permutation(code), state) for _ in range(DEALS)]
    return Position(
        purity=purity(code, state),
        chance=float(np.mean(by_chance)),
        nmi=float(normalized_mutual_info_score(state, code)),
        ami=float(adjusted_mutual_info_score(state, code)),
    )


def purity(code: np.ndarray, state: np.ndarray) -> float:
    """code, state: int [n], from 0 on. Share of the pairs whose state is the most common one of
    their code.
    """
    states = state.max() + 1
    table = np.bincount(code * states + state, minlength=(code.max() + 1) * states)
    return float(table.reshape(-1, states).max(1).sum() / len(code))


def of_run(data: RunData) -> dict[str, Told]:
    """What the traces tell of each finished trace set, by its tag, and of each model that was asked
    the world's held-out problems in mode `abstract`: `NAME, held-out`. Empty without the world.

    Raises UserError for a damaged world or trace set.
    """
    run, states, found = data.run, data.states, {}
    if not states:
        return {}
    for tag in data.traces:
        directory = run.traces(tag)
        table = read_table(directory / TRACES, SET_SCHEMA, mend(directory))
        traces = zip(table["id"].to_pylist(), table["trace"].to_pylist(), strict=True)
        found[tag] = _told_of(traces, states)
    for (mode, model, benchmark), rows in data.rows.items():
        if (mode, benchmark) == ("abstract", WORLD):
            traces = ((row.id.removeprefix(f"{WORLD}/"), row.trace_ids) for row in rows)
            found[f"{model}, held-out"] = _told_of(traces, states)
    return {name: said for name, said in found.items() if said.traces}


def _told_of(traces, states: dict[str, str]) -> Told:
    """traces: (id, codes) of any problems, of which only the world's are looked at."""
    known = [(trace, states[id_]) for id_, trace in traces if id_ in states]
    return told([trace for trace, _ in known], [state for _, state in known])


def tables(found: dict[str, Told]) -> list[Table]:
    """Means over positions; then each position."""
    means, each = [], []
    for name, said in found.items():
        used = f"{said.used:,} of {said.traces:,}"
        if not said.positions:
            means.append((name, used, *[NONE] * 5))
            continue
        percent = (f"{100 * said.mean(key):.1f}" for key in ("purity", "chance"))
        shares = (f"{said.mean(key):.2f}" for key in ("nmi", "ami"))
        means.append((name, used, str(said.per_step), *percent, *shares))
        each.append((name, *(f"{100 * p.purity:.0f} / {p.ami:.2f}" for p in said.positions)))
    columns = ("traces of", "used", "codes a step", "purity %", "by chance %", "NMI", "AMI")
    longest = max((len(row) for row in each), default=0)
    padded = tuple((*row, *[NONE] * (longest - len(row))) for row in each)
    of_positions = ("purity % / AMI at", *map(str, range(1, longest)))
    return [Table(columns, tuple(means)), *[Table(of_positions, padded)] * bool(each)]
