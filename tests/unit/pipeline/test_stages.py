"""Every shipped recipe plans its rounds."""

import pytest

from abscot.pipeline.stages import stages_of
from abscot.recipe.load import load_recipe
from kit.recipes import RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_plans_its_rounds(path, tmp_path):
    recipe = load_recipe(path, [f"run_root={tmp_path}"])
    names = [stage.name for stage in stages_of(recipe)]
    assert len(names) == len(set(names))
    for round_ in range(1, recipe.rounds + 1):
        order = [
            f"traces_pi{round_}_phaseA",
            f"train_pi{round_}_phaseA",
            f"traces_pi{round_}_phaseB",
            f"train_pi{round_}_phaseB",
        ]
        places = [names.index(name) for name in order]
        assert places == sorted(places)
    made = set()
    for stage in stages_of(recipe):
        assert set(stage.inputs) <= made, f"{stage.name} reads what no stage before it makes"
        made |= set(stage.outputs)
    final = tmp_path / recipe.name / "final"
    assert final in made
