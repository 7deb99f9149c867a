"""The cells of a cluster evaluation, model x benchmark x seed, from a small YAML file: each is a
task of its own.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from abscot.common.errors import UserError
from abscot.evaluation.benchmarks import BENCHMARKS
from abscot.method.lineage import model_named, round_models
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

KEYS = ("models", "benchmarks", "seeds")


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
                raise UserError(f"{file}: unknown key {key}; expected {', '.join(KEYS)}")
        grid = cls(
            given.get("models", [model.name for model in round_models(recipe, run)]),
            given.get("benchmarks", recipe.eval.benchmarks),
            given.get("seeds", recipe.eval.samples),
        )
        for key, names in (("models", grid.models), ("benchmarks", grid.benchmarks)):
            if (
                not isinstance(names, list)
                or not names
                or not all(isinstance(name, str) for name in names)
            ):
                raise UserError(f"{file}: {key}: expected a list of names, found {names!r}")
        if not isinstance(grid.seeds, int) or grid.seeds < 1:
            raise UserError(f"{file}: seeds: expected how many there are, found {grid.seeds!r}")
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
                f"{file}: benchmarks: {unknown[0]}: expected one of {', '.join(BENCHMARKS)}"
            )
        return grid

    def cells(self) -> list[Cell]:
        return [
            Cell(*cell)
            for cell in itertools.product(self.models, self.benchmarks, range(self.seeds))
        ]

    def cell(self, number: int) -> Cell:
        cells = self.cells()
        if number >= len(cells):
            raise UserError(
                f"cell {number}: the grid has {len(cells)}; submit it with sbatch "
                f"--array=0-{len(cells) - 1}"
            )
        return cells[number]


def _read(file: Path) -> dict:
    try:
        tree = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; expected a YAML file with {', '.join(KEYS)}"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file}: expected keys {', '.join(KEYS)}, found {type(tree).__name__}")
    return tree
