"""Rows -> bins -> steps: the moves that a plan is made of, on plain arrays.

    best_fit    as few bins as possible (best-fit decreasing)
    pack        best_fit, with short rows spread over the bins
    level_fit   a given number of bins, as equally full as possible
    deal        bins -> steps: neighbours in cost stay together, and all steps see the same mix
    even_out    moves single rows, so that every step has exactly its number

Everything is integer arithmetic and keyed draws: the same input gives the same bins on every
machine.
"""

from bisect import bisect_left, insort
from heapq import heappush, heapreplace

import numpy as np

EXCHANGES = 200  # rounds of them between steps, see `deal`


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Best-fit decreasing: (bin of every item, number of bins). Items of equal length keep their
    order.

    `free` lists the distinct free sizes of open bins, ascending; the fullest bin with room is found
    by bisection.
    """
    order = np.argsort(-lengths, kind="stable")
    shortest = int(lengths[order[-1]])
    free: list[int] = []
    bins_with: dict[int, list[int]] = {}
    placed, num_bins = [], 0
    for length in lengths[order].tolist():
        at = bisect_left(free, length)
        if at == len(free):
            chosen, room = num_bins, capacity - length
            num_bins += 1
        else:
            room = free[at]
            chosen = bins_with[room].pop()
            if not bins_with[room]:
                del free[at]
            room -= length
        placed.append(chosen)
        if room >= shortest:
            waiting = bins_with.setdefault(room, [])
            if not waiting:
                insort(free, room)
            waiting.append(chosen)
    return _in_order_of(order, placed), num_bins


def pack(
    lengths: np.ndarray, capacity: int, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Best fit, where half of the rows below an eighth of a bin ride on a random longer row.

    Plain best fit leaves the short rows to the end, together in a few bins of equal cost: a step
    would see all of them or none. The other half still fills the gaps, so there are hardly more
    bins.
    """
    short = generator.permutation(np.flatnonzero(8 * lengths < capacity))
    hosts = generator.permutation(np.flatnonzero(8 * lengths >= capacity))
    riders = short[: min(len(short) // 2, len(hosts))]
    hosts = hosts[: len(riders)]
    fits = lengths[riders] + lengths[hosts] <= capacity
    item_of = np.arange(len(lengths))
    item_of[riders[fits]] = hosts[fits]
    item_of = relabel(item_of)
    bin_of, num_bins = best_fit(sums(item_of, lengths), capacity)
    return bin_of[item_of], num_bins


def level_fit(lengths: np.ndarray, num_bins: int, capacity: int) -> np.ndarray | None:
    """Bin of every item: longest first, each into the emptiest of `num_bins`; None where one does
    not fit.
    """
    order = np.argsort(-lengths, kind="stable")
    filled = [(0, index) for index in range(num_bins)]
    placed = []
    for length in lengths[order].tolist():
        held, chosen = filled[0]
        if held + length > capacity:
            return None
        placed.append(chosen)
        heapreplace(filled, (held + length, chosen))
    return _in_order_of(order, placed)


def round_bins(needed: int) -> int:
    """Bins per step, rounded up to what common world sizes divide: a power of two up to 8, then a
    multiple of 8 and of the largest power of two of which `needed` is at least 4 times as many.
    """
    if needed <= 8:
        return 1 << (needed - 1).bit_length()
    quantum = max(8, 1 << (needed.bit_length() - 3))
    return -(-needed // quantum) * quantum


def num_strata(per_step: int) -> int:
    """Cost levels of a step: 4 to 7, such that a level's bins are a multiple of the largest power
    of two.
    """
    fitting = [count for count in (4, 5, 6, 7) if per_step % count == 0]
    if not fitting:
        return min(4, per_step)
    return max(fitting, key=lambda count: per_step // count & -(per_step // count))


def deal(
    bin_costs: np.ndarray,
    bin_tokens: np.ndarray,
    bin_rows: np.ndarray,
    per_step: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Step of every bin; each step gets `per_step` of them. bin_costs, bin_tokens, bin_rows: int64
    [bins].

    The bins, sorted by cost, form strata, and each stratum is cut into as many runs of neighbours
    as there are steps. Runs are dealt at random, then random pairs of steps exchange their runs of
    one stratum wherever that brings the tokens and the rows of the two nearer to each other.

    Eight bins of rising cost, four per step: strata of [0 1] [2 3] [4 5] [6 7], so runs of one bin;
    a step gets one bin of each stratum, say 0 3 4 7, and the other step 1 2 5 6.
    """
    steps = len(bin_costs) // per_step
    strata = _strata(bin_costs, per_step, generator)
    mean_length = bin_tokens.sum() // bin_rows.sum()
    measures = np.stack([bin_tokens, bin_rows * mean_length], axis=1)  # rows, in tokens too
    if steps > 1:
        _exchange(strata, measures, generator)
    step_of_bin = np.empty(len(bin_costs), np.int64)
    for runs in strata:
        step_of_bin[runs] = np.arange(steps)[:, None]
    return step_of_bin


def _strata(
    bin_costs: np.ndarray, per_step: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """For each stratum its runs of bins, int64 [steps, bins of a run], in random order: run s goes
    to step s. Bins of equal cost come in random order as well.
    """
    steps = len(bin_costs) // per_step
    order = generator.permutation(len(bin_costs))
    order = order[np.argsort(bin_costs[order], kind="stable")]
    widths = [len(part) for part in np.array_split(np.arange(per_step), num_strata(per_step))]
    strata = np.split(order, np.cumsum(widths)[:-1] * steps)
    return [generator.permutation(stratum.reshape(steps, -1)) for stratum in strata]


def _exchange(
    strata: list[np.ndarray], measures: np.ndarray, generator: np.random.Generator
) -> None:
    """EXCHANGES rounds over all strata, in place. measures: int64 [bins, 2], to be evened out."""
    gives = [measures[runs].sum(1) for runs in strata]  # of each stratum to each step
    held = sum(gives)  # by each step
    steps = len(held)
    for _ in range(EXCHANGES):
        for runs, give in zip(strata, gives, strict=True):
            left, right = generator.permutation(steps)[: steps // 2 * 2].reshape(2, -1)
            change = give[right] - give[left]  # what an exchange brings to the left step
            # The squared distance of the two changes by 4 x this.
            better = (change * (held[left] - held[right] + change)).sum(1) < 0
            left, right, change = left[better], right[better], change[better]
            runs[left], runs[right] = runs[right], runs[left]
            give[left], give[right] = give[right], give[left]
            held[left] += change
            held[right] -= change


def even_out(
    lengths: np.ndarray, bin_of: np.ndarray, step_of_bin: np.ndarray, examples: int, capacity: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exactly `examples` rows per step: steps with more give their shortest rows to steps with
    fewer. A row goes into the emptiest bin of its new step, or into a new bin. Returns (bin_of,
    step_of_bin).

    Rows of 4, 1, 3 tokens in bin 0 of step 0 and of 5 in bin 1 of step 1, two rows per step: step 0
    gives its row of 1 token to bin 1.
    """
    moving, receivers = _surplus(lengths, step_of_bin[bin_of], examples)
    bin_of, step_of_bin = bin_of.copy(), step_of_bin.tolist()
    emptiest: dict[int, list[tuple[int, int]]] = {step: [] for step in receivers}  # (held, bin)
    for index, (step, held) in enumerate(
        zip(step_of_bin, sums(bin_of, lengths).tolist(), strict=True)
    ):
        if step in emptiest:
            heappush(emptiest[step], (held, index))
    for row, length, step in zip(moving.tolist(), lengths[moving].tolist(), receivers, strict=True):
        held, chosen = emptiest[step][0]
        if held + length <= capacity:
            heapreplace(emptiest[step], (held + length, chosen))
        else:
            chosen = len(step_of_bin)
            step_of_bin.append(step)
            heappush(emptiest[step], (length, chosen))
        bin_of[row] = chosen
    kept, bin_of = np.unique(bin_of, return_inverse=True)  # a bin may have given all its rows
    return bin_of, np.asarray(step_of_bin)[kept]


def _surplus(
    lengths: np.ndarray, step_of: np.ndarray, examples: int
) -> tuple[np.ndarray, list[int]]:
    """(rows that must leave their step, the step that each goes to): of a step with more than
    `examples` rows the shortest leave; a step with fewer stands in the list once per row it lacks.
    """
    steps = len(lengths) // examples
    num_rows = np.bincount(step_of, minlength=steps)
    by_step = np.lexsort((lengths, step_of))  # step by step, the shortest row first
    first = np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
    place = np.arange(len(by_step)) - first  # of a row in its step
    moving = by_step[place < (num_rows - examples)[step_of[by_step]]]
    lacking = np.maximum(examples - num_rows, 0)
    return moving, np.repeat(np.arange(steps), lacking).tolist()


def sums(group_of: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum of integer `values` in each group, int64; exact below 2^53."""
    return np.bincount(group_of, values).astype(np.int64)


def relabel(labels: np.ndarray) -> np.ndarray:
    """The same grouping with labels 0, 1, .. without gaps."""
    return np.unique(labels, return_inverse=True)[1]


def _in_order_of(order: np.ndarray, placed: list[int]) -> np.ndarray:
    bin_of = np.empty(len(order), np.int64)
    bin_of[order] = placed
    return bin_of
