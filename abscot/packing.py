"""Lengths -> the plan of a phase: which rows stand in which packed bin of which optimizer step.

The plan is a pure function of lengths, seed and budget; no rank count enters it, so global batch k
is the same set of rows on 1 and on 256 ranks, and resuming is an integer. An epoch is made in four
moves (bins.py):

    shuffle     rows, keyed by (seed, round, phase, epoch), cut into windows of many steps
    pack        token budget: into as few bins as possible (best fit). Example budget: into as many bins a
                step as needed, rounded up to what common world sizes divide, all equally full
    deal        bins sorted by cost (linear + attention) form strata; a step takes one run of neighbours from
                each, so ranks that work side by side get equal cost, while the step sees cheap and dear bins;
                which run goes to which step is chosen so that all steps have nearly the same tokens and mean
                row length
    even out    example budget: a few of the shortest rows change steps, so that each has exactly its number

A worked example, capacity 10, two bins a step, rows of 7, 3, 6, 4, 5, 5, 8, 2 tokens: the bins are
[7 3], [6 4], [5 5] and [8 2], of which [8 2] and [7 3] are the dearer half; steps: {[8 2], [5 5]},
{[7 3], [6 4]}.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abscot import dist
from abscot.bins import deal, even_out, level_fit, pack, relabel, round_bins, sums
from abscot.config import Recipe, TrainConfig, UserError
from abscot.paths import Run
from abscot.phases import ITERATED, Phase
from abscot.vocab import rng

WINDOW_ROWS, WINDOW_STEPS = 65_536, 64  # a window holds at least these many rows and steps
PLAN_VERSION = 1  # of the moves: a plan kept by another version is made again
COST_SCALE = 1024  # costs are integers, so that their sums are the same on every machine


@dataclass(frozen=True)
class Sizes:
    """What the rows of the store weigh in one phase, by row number."""

    tokens: np.ndarray  # int64
    costs: np.ndarray  # int64, linear + attention, in 1/COST_SCALE of the linear cost of a token
    capacity: int  # tokens a bin

    def work(self, rows: np.ndarray, pair_cost: float) -> tuple[float, float]:
        """(tokens, attention pairs) of `rows`, with the pair cost that the costs were made with."""
        tokens = int(self.tokens[rows].sum())
        return tokens, (int(self.costs[rows].sum()) / COST_SCALE - tokens) / pair_cost


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: `bins` are arrays of row numbers, dearest first."""

    index: int
    epoch: int
    bins: list[np.ndarray]
    supervised_tokens: int
    examples: int
    sizes: Sizes

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate(self.bins)

    def micro_steps(self, world: int) -> list[list[np.ndarray | None]]:
        """[micro][rank] -> the rows of one bin, or None where a rank has no work.

        Where the bins do not fill the last micro-step, the rows of the step are levelled into as
        many bins as do (if they fit): the rows of the step stay, and no rank waits more than it
        must.
        """
        bins = self.bins
        slots = -(-len(bins) // world) * world
        if slots > len(bins):
            bin_of = level_fit(self.sizes.tokens[self.rows], slots, self.sizes.capacity)
            if bin_of is not None:
                bins = [self.rows[bin_of == index] for index in range(min(slots, self.examples))]
                bins.sort(key=lambda rows: -int(self.sizes.costs[rows].sum()))
        padded = bins + [None] * (slots - len(bins))
        return [padded[start : start + world] for start in range(0, slots, world)]


@dataclass(frozen=True)
class Plan:
    """All steps of one phase, flat: rows in order, where each bin starts, where each step's bins
    start.
    """

    rows: np.ndarray  # int32 [epochs x rows]
    bin_starts: np.ndarray  # int64 [bins + 1], into rows
    step_starts: np.ndarray  # int64 [steps + 1], into bins
    epochs: np.ndarray  # int32 [steps]
    supervised_tokens: np.ndarray  # int64 [steps]
    sizes: Sizes

    @property
    def num_steps(self) -> int:
        return len(self.epochs)

    @property
    def num_bins(self) -> int:
        return len(self.bin_starts) - 1

    @property
    def hash(self) -> str:
        """Names the sequence of (step, bins, rows): equal hashes mean the same training."""
        digest = hashlib.sha256()
        for array in (
            self.rows,
            self.bin_starts,
            self.step_starts,
            self.epochs,
            self.supervised_tokens,
        ):
            digest.update(np.ascontiguousarray(array, dtype="<i8"))
        return digest.hexdigest()[:16]

    def save(self, path: Path, key: str) -> None:
        """`path` (.npz) holds the old plan or all of this one, whatever is killed; key: what made
        it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        arrays = {**vars(self), **vars(self.sizes), "key": key}
        del arrays["sizes"]
        with open(temp, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temp, path)

    @classmethod
    def load(cls, path: Path) -> tuple["Plan", str]:
        """The plan at `path`, and its key."""
        with np.load(path) as file:
            arrays = dict(file)
        sizes = Sizes(arrays.pop("tokens"), arrays.pop("costs"), int(arrays.pop("capacity")))
        key = str(arrays.pop("key"))
        return cls(**arrays, sizes=sizes), key

    def step(self, index: int) -> StepPlan:
        """Raises IndexError past the end."""
        if not 0 <= index < self.num_steps:
            raise IndexError(f"step {index} of a plan of {self.num_steps} steps")
        first, last = self.step_starts[index], self.step_starts[index + 1]
        edges = self.bin_starts[first : last + 1]
        bins = [self.rows[a:b] for a, b in zip(edges, edges[1:], strict=False)]
        examples, supervised = int(edges[-1] - edges[0]), int(self.supervised_tokens[index])
        return StepPlan(index, int(self.epochs[index]), bins, supervised, examples, self.sizes)

    def bin_costs(self) -> np.ndarray:
        """int64 [bins], in 1/COST_SCALE of the linear cost of a token."""
        return np.add.reduceat(self.sizes.costs[self.rows], self.bin_starts[:-1])

    def dearest_bin(self) -> np.ndarray:
        """The rows of the bin that costs most."""
        dearest = int(self.bin_costs().argmax())
        return self.rows[self.bin_starts[dearest] : self.bin_starts[dearest + 1]]

    def utilisation(self, world: int) -> float:
        """Work done / work the ranks could have done: mean over maximum cost of all micro-steps."""
        bin_costs = self.bin_costs()
        done, possible = int(bin_costs.sum()), 0
        for index, (first, last) in enumerate(
            zip(self.step_starts, self.step_starts[1:], strict=False)
        ):
            if (last - first) % world == 0:
                possible += world * int(bin_costs[first:last].reshape(-1, world).max(1).sum())
            else:
                for bins in self.step(index).micro_steps(world):
                    possible += world * max(
                        int(self.sizes.costs[b].sum()) for b in bins if b is not None
                    )
        return done / possible


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
    _check_rows(rows, tokens, capacity_tokens, row_name)
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


def plan_file(run: Run, tag: str) -> Path:
    """Where a phase's plan is kept."""
    return run.root / "plans" / f"{tag}.npz"


def kept_plan(path: Path, made_from: dict, make: Callable[[], Plan]) -> Plan:
    """The plan kept at `path` if it was made from the same (plain) values, else a new one, kept
    there.
    """
    text = json.dumps({"version": PLAN_VERSION, **made_from}, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    if path.is_file():
        plan, kept_key = Plan.load(path)
        if kept_key == key:
            return plan
    plan = make()
    if dist.rank() == 0:
        plan.save(path, key)
    return plan


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


def document_lengths(
    phase: Phase,
    prompt: np.ndarray,
    cot: np.ndarray,
    answer: np.ndarray,
    trace: np.ndarray,
    train: TrainConfig,
    suffix_tokens: int = 0,
    think_tokens: int = 0,
) -> dict[str, np.ndarray]:
    """What rows of these token counts are as documents of `phase`, all int64 [rows]:

    `X` `C` `Z` `Y` tokens (0 where the phase has none), `total`, `supervised` tokens, attended
    `pairs`. trace: codebook tokens without delimiters. A phase that supervises the CoT uses the
    thinking template: X without the suffix that turns thinking off, C with the think marks.
    """
    thinks = "C" in phase.supervised
    of = {
        "X": prompt - suffix_tokens * thinks,
        "C": cot + think_tokens * thinks,
        "Z": trace + 2,
        "Y": answer,
    }
    of = {name: n.astype(np.int64) * (name in phase.segments) for name, n in of.items()}
    total = sum(of.values())
    supervised = sum(of[name] for name in phase.supervised)
    if "Z" in phase.supervised:
        supervised = supervised - (not train.supervise_begin) - (not train.supervise_end)
    pairs = total * (total + 1) // 2 - (of["C"] * of["Y"] if phase.bottleneck else 0)
    return {**of, "total": total, "supervised": supervised, "pairs": pairs}


def rows_digest(rows: np.ndarray) -> int:
    """A sum over rows of a 64-bit mix (splitmix64), as a signed 64-bit integer.

    Order does not matter, and the wrapping sum of the ranks' digests is the digest of all their
    rows: the trainer reduces it over ranks, and the audit compares it with the plan.
    """
    mixed = (np.asarray(rows).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return int(mixed.sum(dtype=np.uint64).astype(np.int64))


@dataclass(frozen=True)
class _Window:
    """Some consecutive steps: rows in order, rows a bin, bins a step."""

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
    rows_a_step = per_step * capacity / sizes.tokens[shuffled].mean()
    count = max(1, round(len(shuffled) / max(WINDOW_ROWS, WINDOW_STEPS * rows_a_step)))
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
    """Rows ordered by (step, dearest bin first)."""
    order = np.lexsort((-sums(bin_of, sizes.costs[rows]), step_of_bin))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    in_order = np.argsort(place[bin_of], kind="stable")
    return _Window(rows[in_order], np.bincount(place[bin_of]), np.bincount(step_of_bin))


def _pack_into_steps(
    sizes: Sizes, rows: np.ndarray, steps: int, examples: int
) -> tuple[np.ndarray, int]:
    """(bin of every row, bins a step): as few a step as `round_bins` and whole rows allow, equally
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


def _check_rows(
    rows: np.ndarray, lengths: np.ndarray, capacity: int, row_name: Callable[[int], str]
) -> None:
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
            f"train.capacity_tokens={capacity}"
            f" ({len(too_long)} such rows); raise it, or prepare again with data.long_rows"
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
