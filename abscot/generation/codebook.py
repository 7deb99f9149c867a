"""The codebook of grounded traces: the centroids of hidden states at steps of CoTs. A state's code
is the number of the centroid next to it; further codes are of what the ones before leave.

A state is coded without the mean of its place: what all third steps of a row have in common says
nothing about one of them. What is left is divided, dimension by dimension, by its spread, for a few
dimensions of a large model are far wider than all others, and would alone decide.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pydantic
from pydantic import NonNegativeInt, PositiveInt

from abscot.common import files
from abscot.common.errors import UserError
from abscot.common.record import Record
from abscot.generation.trace_records import Share
from abscot.model.weights import opened
from abscot.recipe.run import Run

META, TENSORS = "codebook.json", "codebook.safetensors"
STATES_OF_A_MEAN = 100  # at a place, at least; places with fewer have the mean of all
LEAST_SPREAD = 0.01  # of a dimension, as a share of the mean one: less is noise
TOP_CODE_SHARE = 0.5
BATCH_STATES = 4096
STARTS = 3  # of k-means++, the best of which is kept


class LevelCounts(Record):
    """How often each code of one level was the nearest of a state."""

    counts: list[NonNegativeInt]

    @property
    def dead(self) -> int:
        return self.counts.count(0)

    @property
    def top_share(self) -> float:
        return max(self.counts) / max(sum(self.counts), 1)

    def warnings(self) -> list[str]:
        found = [f"{self.dead} of {len(self.counts)} codes are never used"] * bool(self.dead)
        if self.top_share > TOP_CODE_SHARE:
            found.append(f"code {self.counts.index(max(self.counts))} has {self.top_share:.0%}")
        return found


class CodebookMeta(Record):
    """codebook.json. layer: share of the depth; layer_number: of num_layers, 0 the embeddings.
    rows, states: that it was fitted to. levels: of codes, each with codebook_size centroids.
    """

    VERSION: ClassVar[int] = 2

    version: Annotated[int, pydantic.Field(ge=VERSION, le=VERSION)]
    base_fingerprint: str
    layer: Share
    layer_number: NonNegativeInt
    num_layers: PositiveInt
    position: str
    hidden_size: PositiveInt
    codebook_size: PositiveInt
    places: PositiveInt
    seed: int
    rows: PositiveInt
    states: PositiveInt
    levels: Annotated[list[LevelCounts], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _adds_up(self):
        for level in self.levels:
            if len(level.counts) != self.codebook_size or sum(level.counts) != self.states:
                raise ValueError("the counts of a level do not add up")
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors, all float32."""
        width = self.hidden_size
        return {
            "means": (self.places + 1, width),
            "spread": (width,),
            "centroids": (len(self.levels), self.codebook_size, width),
        }


@dataclass(frozen=True)
class Codebook:
    """means: float32 [places + 1, hidden], of the i-th state of a row, the last of all further
    ones; spread: [hidden]; centroids: [levels, M, hidden].
    """

    meta: CodebookMeta
    means: np.ndarray
    spread: np.ndarray
    centroids: np.ndarray

    @property
    def levels(self) -> int:
        return len(self.centroids)

    def codes(self, states: np.ndarray, levels: int) -> np.ndarray:
        """int64 [states, levels] of the states of one row, float32 [states, hidden], in order."""
        place = np.minimum(np.arange(len(states)), len(self.means) - 1)
        left = (states - self.means[place]) / self.spread
        found = []
        for centroids in self.centroids[:levels]:
            found.append(nearest(left, centroids))
            left = left - centroids[found[-1]]
        return np.stack(found, axis=1)

    def write(self, directory: Path) -> None:
        from safetensors.numpy import save_file

        tensors = {name: getattr(self, name) for name in self.meta.shapes()}
        save_file(tensors, directory / TENSORS)
        self.meta.write(directory / META)

    @classmethod
    def of_run(cls, run: Run) -> "Codebook":
        return cls.read(run.codebook, made_again(run))

    @classmethod
    def read(cls, directory: Path, mend: str) -> "Codebook":
        """Raises UserError for a directory that does not hold a codebook, whole and of numbers."""
        if not directory.is_dir():
            raise UserError(f"{directory}: not a directory; {mend}")
        meta = CodebookMeta.read(directory / META, mend)
        if files.is_done(directory):
            files.verify(directory)
        where, tensors = f"{directory / TENSORS}", {}
        with opened(directory / TENSORS, str(directory)) as file:
            found = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
            if found != meta.shapes():
                raise UserError(f"{where}: has {found}, {META} says {meta.shapes()}; {mend}")
            for name in found:
                if (kind := file.get_slice(name).get_dtype()) != "F32":
                    raise UserError(f"{where}: {name} is {kind}, expected F32; {mend}")
                tensors[name] = file.get_tensor(name).numpy()
        if wrong := _damage(**tensors):
            raise UserError(f"{where}: {wrong}; {mend}")
        return cls(meta, **tensors)


def made_again(run: Run) -> str:
    """What makes the codebook of a run anew."""
    return f"delete {run.codebook} and run: python launch/codebook.py --recipe {run.config}"


def _damage(means: np.ndarray, spread: np.ndarray, centroids: np.ndarray) -> str | None:
    for level, code in np.argwhere(~np.isfinite(centroids).all(-1)):
        return f"centroid {code} of level {level} holds NaN or infinity"
    for code in np.flatnonzero((centroids[0] == 0).all(-1)):
        return f"centroid {code} of level 0 is empty (all zeros)"
    for name, values in {"means": means, "spread": spread}.items():
        if not np.isfinite(values).all():
            return f"{name} hold NaN or infinity"
    return None if (spread > 0).all() else "spread: expected numbers above 0"


def nearest(states: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """int64 [n]: of the centroids [M, hidden], the one next to each state [n, hidden]; the first of
    several.
    """
    return ((centroids**2).sum(1) - 2 * states @ centroids.T).argmin(1)


def fit(
    states: np.ndarray, place: np.ndarray, places: int, size: int, levels: int, seed: int
) -> tuple[dict[str, np.ndarray], list[LevelCounts]]:
    """The tensors of a codebook of `size` codes on each level, and how often each is used.

    states: float32 [n, hidden], overwritten; place: int [n], of each among the states of its row.
    Raises UserError where there are fewer different states than codes.
    """
    _check_distinct(states, size)
    means = _means(states, place, places)
    states -= means[np.minimum(place, places)]
    spread = states.std(axis=0, dtype=np.float64)
    spread = np.maximum(spread, LEAST_SPREAD * spread.mean())
    spread = np.where(spread > 0, spread, 1).astype(np.float32)
    states /= spread
    centroids, counts = [], []
    for level in range(levels):
        centroids.append(_centroids(states, size, seed + level))
        codes = np.concatenate(
            [
                nearest(states[start : start + BATCH_STATES], centroids[-1])
                for start in range(0, len(states), BATCH_STATES)
            ]
        )
        counts.append(LevelCounts(counts=np.bincount(codes, minlength=size).tolist()))
        states -= centroids[-1][codes]
    return {"means": means, "spread": spread, "centroids": np.stack(centroids)}, counts


def _check_distinct(states: np.ndarray, size: int) -> None:
    seen = set()
    for state in states:
        seen.add(state.tobytes())
        if len(seen) >= size:
            return
    raise UserError(
        f"grounding.layer: its states at {len(states):,} steps take only {len(seen)} different "
        f"values, fewer than codebook_size ({size}); use a layer further up, more "
        f"grounding.fit_steps, or --set codebook_size={max(1, len(seen))}"
    )


def _means(states: np.ndarray, place: np.ndarray, places: int) -> np.ndarray:
    means = np.empty((places + 1, states.shape[1]), np.float32)
    means[:] = states.mean(axis=0, dtype=np.float64)
    order = np.argsort(place, kind="stable")
    ends = np.searchsorted(place[order], np.arange(places + 1))
    for i in range(places):
        at = order[ends[i] : ends[i + 1]]
        if len(at) >= STATES_OF_A_MEAN:
            means[i] = states[at].mean(axis=0, dtype=np.float64)
    return means


def _centroids(states: np.ndarray, size: int, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    fitted = MiniBatchKMeans(
        size, init="k-means++", n_init=STARTS, batch_size=BATCH_STATES, random_state=seed
    ).fit(states)
    return fitted.cluster_centers_.astype(np.float32)
