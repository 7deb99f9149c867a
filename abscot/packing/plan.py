"""Lengths -> the plan of a phase: which rows stand in which packed bin of which optimizer step.

The plan is a pure function of lengths, seed and budget; no rank count enters it, so global batch k
is the same set of rows on 1 and on 256 ranks, and resuming is an integer. An epoch is made in four
moves (bins.py):

    shuffle     rows, keyed by (seed, round, phase, epoch), cut into windows of many steps
    pack        token budget: into as few bins as possible (best fit). Example budget: into as many
                bins per step as needed, rounded up to what common world sizes divide, all equally
                full
    deal        bins sorted by cost (linear + attention) form strata; a step takes one run of
                neighbours from each, so ranks that work side by side get equal cost, while the step
                sees cheap and expensive bins; which run goes to which step is chosen so that all
                steps have nearly the same tokens and mean row length
    even out    example budget: a few of the shortest rows change steps, so that each has exactly
                its number

A worked example: capacity 10, two bins per step, rows of 7, 3, 6, 4, 5, 5, 8, 2 tokens. The bins
are [7 3], [6 4], [5 5] and [8 2], of which [8 2] and [7 3] cost most; the steps are {[8 2], [5 5]}
and {[7 3], [6 4]}.
"""

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abscot.common.disk import naming
from abscot.common.errors import UserError, shown
from abscot.common.files import removed_on_error
from abscot.packing.bins import level_fit

COST_SCALE = 1024  # costs are integers, so that their sums are the same on every machine
# What a plan file holds: the kind of its numbers and how many axes an array has.
ARRAYS = {
    "rows": ("i", 1),
    "bin_starts": ("i", 1),
    "step_starts": ("i", 1),
    "epochs": ("i", 1),
    "supervised_tokens": ("i", 1),
    "tokens": ("i", 1),
    "costs": ("i", 1),
    "capacity": ("i", 0),
    "key": ("U", 0),
}


@dataclass(frozen=True)
class Sizes:
    """What the rows of the store weigh in one phase, by row number."""

    tokens: np.ndarray  # int64
    costs: np.ndarray  # int64, linear + attention, in 1/COST_SCALE of the linear cost of a token
    capacity: int  # tokens per bin

    def work(self, rows: np.ndarray, pair_cost: float) -> tuple[float, float]:
        """(tokens, attention pairs) of `rows`, with the pair cost that the costs were made with."""
        tokens = int(self.tokens[rows].sum())
        return tokens, (int(self.costs[rows].sum()) / COST_SCALE - tokens) / pair_cost


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: `bins` are arrays of row numbers, most expensive first."""

    index: int
    epoch: int
    bins: list[np.ndarray]
    supervised_tokens: int
    examples: int
    sizes: Sizes

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate(self.bins)

    def micro_steps(self, world_size: int) -> list[list[np.ndarray | None]]:
        """[micro][rank] -> the rows of one bin, or None where a rank has no work.

        Where the bins do not fill the last micro-step, the rows of the step are levelled into as
        many bins as do (if they fit): the rows of the step stay, and no rank waits more than it
        must.
        """
        bins = self.bins
        slots = -(-len(bins) // world_size) * world_size
        if slots > len(bins):
            bin_of = level_fit(self.sizes.tokens[self.rows], slots, self.sizes.capacity)
            if bin_of is not None:
                bins = [self.rows[bin_of == index] for index in range(min(slots, self.examples))]
                bins.sort(key=lambda rows: -int(self.sizes.costs[rows].sum()))
        padded = bins + [None] * (slots - len(bins))
        return [padded[start : start + world_size] for start in range(0, slots, world_size)]


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
        with naming(path), removed_on_error(temp):
            with open(temp, "wb") as file:
                np.savez(file, **arrays)
            os.replace(temp, path)

    @classmethod
    def load(cls, path: Path) -> tuple["Plan", str]:
        """The plan at `path`, and its key. Raises UserError for a file that is no whole plan."""
        try:
            arrays = _read_arrays(path)
            sizes = Sizes(arrays.pop("tokens"), arrays.pop("costs"), int(arrays.pop("capacity")))
            key = str(arrays.pop("key"))
            plan = cls(**arrays, sizes=sizes)
            plan._check()
        except OSError as error:
            what = error.strerror or str(error)
        except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            what = f"not a whole plan ({shown(str(error)) or type(error).__name__})"
        else:
            return plan, key
        raise UserError(f"{path}: {what}; delete it: the next command makes the same plan again")

    def _check(self) -> None:
        """Raises ValueError where the arrays do not fit together."""
        bins, sizes = self.num_bins, self.sizes
        edges = {"bin_starts": len(self.rows), "step_starts": bins}
        for name, end in edges.items():
            starts = getattr(self, name)
            rises = len(starts) > 1 and (np.diff(starts) > 0).all()
            if not rises or starts[0] != 0 or starts[-1] != end:
                raise ValueError(f"{name} does not rise from 0 to {end}")
        if not len(self.step_starts) - 1 == len(self.epochs) == len(self.supervised_tokens):
            raise ValueError("another number of steps in each array")
        if (np.diff(self.epochs, prepend=0) < 0).any() or (self.supervised_tokens < 0).any():
            raise ValueError("epochs that fall, or fewer than no supervised tokens")
        if len(sizes.tokens) != len(sizes.costs) or sizes.capacity < 1:
            raise ValueError("tokens and costs of other rows")
        if self.rows.min() < 0 or self.rows.max() >= len(sizes.tokens):
            raise ValueError("a row that the store does not have")

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

    def most_expensive_bin(self) -> np.ndarray:
        """The rows of the bin that costs most."""
        number = int(self.bin_costs().argmax())
        return self.rows[self.bin_starts[number] : self.bin_starts[number + 1]]

    def utilisation(self, world_size: int) -> float:
        """Work done / work the ranks could have done: mean over maximum cost of all micro-steps."""
        bin_costs = self.bin_costs()
        done, possible = int(bin_costs.sum()), 0
        for index, (first, last) in enumerate(
            zip(self.step_starts, self.step_starts[1:], strict=False)
        ):
            if (last - first) % world_size == 0:
                possible += world_size * int(
                    bin_costs[first:last].reshape(-1, world_size).max(1).sum()
                )
            else:
                for bins in self.step(index).micro_steps(world_size):
                    possible += world_size * max(
                        int(self.sizes.costs[b].sum()) for b in bins if b is not None
                    )
        return done / possible


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a plan file; nothing is unpickled, or unpacked to more than the file holds."""
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    with zipfile.ZipFile(path) as archive:
        names = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if set(names) != set(ARRAYS):
            raise ValueError(f"holds {', '.join(sorted(names)) or 'nothing'}")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in names.values()):
            raise ValueError("packed by something else")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    for name, (kind, axes) in ARRAYS.items():
        if arrays[name].dtype.kind != kind or arrays[name].ndim != axes:
            raise ValueError(f"{name}: {arrays[name].dtype} of {arrays[name].ndim} axes")
    return arrays


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
