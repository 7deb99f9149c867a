"""The cells of a cluster evaluation, model x benchmark x seed, from a small YAML file: each is a
task of its own.
"""

import itertools
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from abscot.common.errors import UserError
from abscot.evaluation.benchmarks import BENCHMARKS
from abscot.method.lineage import model_named, run_models
from abscot.recipe import yaml_text
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

KEYS = ("models", "benchmarks", "seeds")
MOST_SEEDS = 10_000  # each is a task of a cluster


class Cell(NamedTuple):
    """seed: the number of the sample. The draws of an answer come from (recipe seed, problem,
    sample).
    """

    model: str
    benchmark: str
    seed: int

    def __str__(self) -> str:
        return f"{self.model} {self.benchmark} seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """What is left out of the file is the recipe's: all its models, its benchmarks, as many seeds
    as eval.samples.
    """

    models: list[str]
    benchmarks: list[str]
    seeds: int

    @classmethod
    def of(cls, recipe: Recipe, file: str | None) -> "Grid":
        """Raises UserError, naming file and key, for a file that cannot be read and for unknown
        keys and names.
        """
        given, run = _read(Path(file)) if file else {}, Run.of(recipe)
        for key in given:
            if key not in KEYS:
                raise UserError(f"{file}: unknown key {key[:80]}; expected {', '.join(KEYS)}")
        grid = cls(
            given.get("models", [model.name for model in run_models(recipe, run)]),
            given.get("benchmarks", recipe.eval.benchmarks),
            given.get("seeds", recipe.eval.samples),
        )
        for key, names in (("models", grid.models), ("benchmarks", grid.benchmarks)):
            _check_names(f"{file or 'the recipe'}: {key}", names)
        if type(grid.seeds) is not int or not 1 <= grid.seeds <= MOST_SEEDS:
            raise UserError(
                f"{file}: seeds: expected how many there are, found {grid.seeds!r:.80}; 1 to "
                f"{MOST_SEEDS:,}"
            )
        config = recipe.eval
        if grid.seeds > 1 and not (config.answer_temperature or config.trace_temperature):
            raise UserError(
                f"{file or 'eval.samples'}: greedy answers are all the same; set "
                "eval.answer_temperature or eval.trace_temperature above 0, or seeds to 1"
            )
        for name in grid.models:
            model_named(recipe, run, name)
        if unknown := [name for name in grid.benchmarks if name not in BENCHMARKS]:
            raise UserError(
                f"{file}: benchmarks: {unknown[0][:200]}: expected one of {', '.join(BENCHMARKS)}"
            )
        return grid

    def cells(self) -> list[Cell]:
        return [
            Cell(*cell)
            for cell in itertools.product(self.models, self.benchmarks, range(self.seeds))
        ]

    def cell(self, number: int) -> Cell:
        cells = self.cells()
        if not 0 <= number < len(cells):
            raise UserError(
                f"cell {number}: the grid has {len(cells)}; submit it with sbatch "
                f"--array=0-{len(cells) - 1}"
            )
        return cells[number]


def _check_names(where: str, names) -> None:
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"{where}: expected a list of names, found {reprlib.repr(names)}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: {reprlib.repr(twice[0])} is named twice")


def _read(file: Path) -> dict:
    what = f"a YAML file with {', '.join(KEYS)}"
    tree, _ = yaml_text.parse(yaml_text.read(file, what), str(file))
    if not isinstance(tree, dict):
        raise UserError(f"{file}: expected keys {', '.join(KEYS)}, found {type(tree).__name__}")
    return tree
