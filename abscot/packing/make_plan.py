"""Lengths -> the plan of a phase, by the moves of bins.py."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from abscot.common.draws import rng
from abscot.common.errors import UserError
from abscot.packing.bins import deal, even_out, level_fit, pack, relabel, round_bins, sums
from abscot.packing.plan import COST_SCALE, Plan, Sizes

WINDOW_ROWS, WINDOW_STEPS = 65_536, 64  # a window holds at least these many rows and steps


def make_plan(
    lengths_tokens: np.ndarray,
    attention_pairs: np.ndarray,
    supervised_tokens: np.ndarray,
    *,
    seed: int,
    epochs: int,
    capacity_tokens: int,
    global_batch_examples: int | None = None,
    global_batch_tokens: int | None = None,
    pair_cost: float = 0.0,
    round_: int = 1,
    phase: str = "",
    rows: np.ndarray | None = None,
    row_name: Callable[[int], str] = "row {}".format,
) -> Plan:
    """The plan of one phase.

    lengths_tokens, attention_pairs, supervised_tokens: [rows of the store]; what each row costs in
    this phase. pair_cost: cost of one (query, key) pair in units of the linear layers' cost of one
    token. rows: the row numbers to train on (default: all). global_batch_examples: a step has
    exactly this many rows; the last step of an epoch has what is left. global_batch_tokens: a step
    has exactly global_batch_tokens // capacity_tokens bins (at least one), as full as whole rows
    allow; the last step of an epoch has what is left.

    Raises UserError for a row that is longer than a bin, naming it by `row_name`, and for no rows.
    """
    if (global_batch_examples is None) == (global_batch_tokens is None):
        raise ValueError("exactly one of global_batch_examples and global_batch_tokens")
    rows = np.arange(len(lengths_tokens)) if rows is None else np.asarray(rows)
    tokens = np.asarray(lengths_tokens, dtype=np.int64)
    check_rows(rows, tokens, capacity_tokens, row_name)
    costs = tokens * COST_SCALE + np.rint(
        np.asarray(attention_pairs) * (pair_cost * COST_SCALE)
    ).astype(np.int64)
    sizes = Sizes(tokens, costs, capacity_tokens)
    windows, window_epochs = [], []
    for epoch in range(epochs):
        generator = rng("plan", seed, round_, phase, epoch)
        shuffled = generator.permutation(rows)
        if global_batch_examples is not None:
            made = _windows_of_examples(shuffled, sizes, global_batch_examples, generator)
        else:
            made = _windows_of_tokens(shuffled, sizes, global_batch_tokens, generator)
        windows += made
        window_epochs += [epoch] * len(made)
    return _join(windows, window_epochs, sizes, np.asarray(supervised_tokens, dtype=np.int64))


@dataclass(frozen=True)
class _Window:
    """Some consecutive steps: rows in order, rows per bin, bins per step."""

    rows: np.ndarray
    bin_sizes: np.ndarray
    step_sizes: np.ndarray


def _windows_of_examples(
    shuffled: np.ndarray, sizes: Sizes, examples: int, generator
) -> list[_Window]:
    """Steps of exactly `examples` rows, then one of the rest; within a window all steps have as
    many bins.
    """
    steps = len(shuffled) // examples
    count = max(1, round(steps / max(WINDOW_STEPS, WINDOW_ROWS / examples)))
    edges = [part[0] * examples for part in np.array_split(np.arange(steps), count) if len(part)]
    windows = []
    for rows in np.split(shuffled, [*edges[1:], steps * examples]):
        if not len(rows):
            continue
        per_window = min(examples, len(rows))
        bin_of, per_step = _pack_into_steps(sizes, rows, len(rows) // per_window, per_window)
        step_of_bin = _deal(sizes, rows, bin_of, per_step, generator)
        bin_of, step_of_bin = even_out(
            sizes.tokens[rows], bin_of, step_of_bin, per_window, sizes.capacity
        )
        windows.append(_window(sizes, rows, bin_of, step_of_bin))
    return windows


def _windows_of_tokens(shuffled: np.ndarray, sizes: Sizes, tokens: int, generator) -> list[_Window]:
    """Steps of tokens // capacity bins; a window's bins beyond whole steps are drawn at random and
    their rows go to the next window, at the end into the last step.
    """
    per_step = max(1, tokens // sizes.capacity)
    capacity = max(int(sizes.tokens[shuffled].max()), min(sizes.capacity, tokens))
    rows_per_step = per_step * capacity / sizes.tokens[shuffled].mean()
    count = max(1, round(len(shuffled) / max(WINDOW_ROWS, WINDOW_STEPS * rows_per_step)))
    windows, waiting = [], shuffled[:0]
    for part in np.array_split(shuffled, count):
        rows = np.concatenate([waiting, part])
        bin_of, num_bins = pack(sizes.tokens[rows], capacity, generator)
        is_left = np.zeros(num_bins, bool)
        is_left[generator.permutation(num_bins)[num_bins // per_step * per_step :]] = True
        left = is_left[bin_of]
        if num_bins >= per_step:
            used, used_bin_of = rows[~left], relabel(bin_of[~left])
            step_of_bin = _deal(sizes, used, used_bin_of, per_step, generator)
            windows.append(_window(sizes, used, used_bin_of, step_of_bin))
        waiting, waiting_bin_of = rows[left], bin_of[left]
    if len(waiting):
        waiting_bin_of = relabel(waiting_bin_of)
        windows.append(
            _window(sizes, waiting, waiting_bin_of, np.zeros(waiting_bin_of.max() + 1, np.int64))
        )
    return windows


def _deal(
    sizes: Sizes, rows: np.ndarray, bin_of: np.ndarray, per_step: int, generator
) -> np.ndarray:
    costs, tokens = sums(bin_of, sizes.costs[rows]), sums(bin_of, sizes.tokens[rows])
    return deal(costs, tokens, np.bincount(bin_of), per_step, generator)


def _window(sizes: Sizes, rows: np.ndarray, bin_of: np.ndarray, step_of_bin: np.ndarray) -> _Window:
    """Rows ordered by (step, most expensive bin first)."""
    order = np.lexsort((-sums(bin_of, sizes.costs[rows]), step_of_bin))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    in_order = np.argsort(place[bin_of], kind="stable")
    return _Window(rows[in_order], np.bincount(place[bin_of]), np.bincount(step_of_bin))


def _pack_into_steps(
    sizes: Sizes, rows: np.ndarray, steps: int, examples: int
) -> tuple[np.ndarray, int]:
    """(bin of every row, bins per step): as few bins as `round_bins` and whole rows allow, equally
    full.
    """
    tokens = sizes.tokens[rows]
    needed = (
        max(tokens.sum() / sizes.capacity, np.count_nonzero(2 * tokens > sizes.capacity)) / steps
    )
    per_step = min(round_bins(int(np.ceil(needed))), examples)
    while (bin_of := level_fit(tokens, per_step * steps, sizes.capacity)) is None:
        per_step = min(round_bins(per_step + 1), examples)
    return bin_of, per_step


def check_rows(
    rows: np.ndarray, lengths: np.ndarray, capacity: int, row_name: Callable[[int], str]
) -> None:
    """Raises UserError for no rows, and for one that is longer than a bin, by its name."""
    if not len(rows):
        raise UserError(
            "no rows to train on: the shard store (or this phase's part of it) is empty; see "
            "manifest.json"
        )
    too_long = rows[lengths[rows] > capacity]
    if len(too_long):
        worst = int(too_long[np.argmax(lengths[too_long])])
        raise UserError(
            f"{row_name(worst)}: {lengths[worst]} tokens do not fit in "
            f"train.capacity_tokens={capacity} ({len(too_long)} such rows); raise it, or prepare "
            "again with data.long_rows"
        )


def _join(
    windows: list[_Window], window_epochs: list[int], sizes: Sizes, supervised: np.ndarray
) -> Plan:
    rows = np.concatenate([w.rows for w in windows]).astype(np.int32)
    bin_starts = np.concatenate([[0], np.cumsum(np.concatenate([w.bin_sizes for w in windows]))])
    step_starts = np.concatenate([[0], np.cumsum(np.concatenate([w.step_sizes for w in windows]))])
    epochs = np.repeat(window_epochs, [len(w.step_sizes) for w in windows]).astype(np.int32)
    step_totals = np.add.reduceat(supervised[rows], bin_starts[step_starts[:-1]])
    return Plan(rows, bin_starts, step_starts, epochs, step_totals, sizes)
