"""The cells of a cluster evaluation: all of them, each once, by number; mistakes are named with
file and key.
"""

import pytest

from abscot.common.errors import UserError
from abscot.evaluation.grid import Cell, Grid
from abscot.recipe.load import ROOT, load_recipe


@pytest.fixture
def grid_of(tmp_path):
    def make(text: str, *overrides: str) -> Grid:
        file = tmp_path / "grid.yaml"
        file.write_text(text)
        return Grid.of(load_recipe(None, list(overrides)), str(file))

    return make


def test_cells_are_the_product_and_have_numbers(grid_of):
    grid = grid_of(
        "{models: [base, final], benchmarks: [world, gsm8k], seeds: 3}",
        "eval.answer_temperature=1.0",
    )
    cells = grid.cells()
    assert len(cells) == len(set(cells)) == 12
    assert grid.cell(0) == Cell("base", "world", 0) and grid.cell(11) == Cell("final", "gsm8k", 2)
    for outside in (12, -1):
        with pytest.raises(UserError, match="has 12; submit it with sbatch --array=0-11"):
            grid.cell(outside)


def test_what_is_left_out_is_the_recipes(grid_of):
    recipe = load_recipe(None, ["rounds=2", "eval.samples=2", "eval.answer_temperature=1.0"])
    assert [str(cell) for cell in Grid.of(recipe, None).cells()] == [
        f"{model} world seed {seed}" for model in ("base", "round1", "final") for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{model: [base]}", "grid.yaml: unknown key model; expected models, benchmarks, seeds"),
        ("{models: base}", "grid.yaml: models: expected a list of names, found 'base'"),
        ("{models: [round9]}", "round9: expected all, one of"),
        ("{benchmarks: [math]}", "grid.yaml: benchmarks: math: expected one of world"),
        ("{seeds: 0}", "grid.yaml: seeds: expected how many there are, found 0"),
        ("{seeds: true}", "grid.yaml: seeds: expected how many there are, found True"),
        ("{models: [base, base]}", "grid.yaml: models: 'base' is named twice"),
        ("{models: [" + "[" * 1000, "grid.yaml:1: not YAML"),
        ("{seeds: 2001-99-99}", "grid.yaml: seeds: expected how many"),
        ("{models: [&a [x, x], *a]}", "grid.yaml:1: not YAML: an alias"),
        ("{seeds: 4}", "grid.yaml: greedy answers are all the same"),
        ("[base]", "grid.yaml: expected keys models, benchmarks, seeds, found list"),
        ("{", "grid.yaml:1: not YAML"),
    ],
)
def test_a_mistake_is_one_line(grid_of, text, message):
    with pytest.raises(UserError, match=message) as error:
        grid_of(text)
    assert "\n" not in str(error.value)


def test_the_shipped_grid_is_that_of_the_default_recipe():
    assert (
        Grid.of(load_recipe(), str(ROOT / "slurm" / "grid.yaml")).cells()
        == Grid.of(load_recipe(), None).cells()
    )
