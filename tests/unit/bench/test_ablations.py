"""The ablations: every variant is a recipe that can be trained, and trains on as many answers."""

import pytest

from abscot.bench import ablations
from abscot.common.errors import UserError
from abscot.method import schedules
from abscot.method.lineage import answers_per_row
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run, claim


@pytest.fixture
def grounded(tmp_path):
    recipe = load_recipe(None, [f"run_root={tmp_path}", "name=r"])
    return claim(recipe), recipe


@pytest.mark.parametrize("name", ablations.VARIANTS)
def test_a_variant_can_be_trained_on_as_many_answers_as_the_run(grounded, name):
    run, recipe = grounded
    changed = ablations.variant(run, recipe, name)
    schedules.check(changed)
    assert answers_per_row(changed) == answers_per_row(recipe)
    assert Run.of(changed).root.parent == run.root.parent and changed.name != recipe.name


def test_what_is_no_grounded_run_of_the_world_is_refused(tmp_path):
    run = claim(load_recipe(None, [f"run_root={tmp_path}", "name=r", "schedule=paper"]))
    with pytest.raises(UserError, match="expected a run of the world with schedule `grounded`"):
        ablations.run([str(run.root)])


def test_a_variant_that_was_refused_stands_in_the_table_and_its_line_below(
    grounded, monkeypatch, capsys
):
    run, _ = grounded
    lines = {"M=8": None, "layer 0, end": "error: too few states"}
    found = {"accuracy": 95.0, "swapped": 16.0, "channel": None, "loss_z": 0.125}
    for name, stand_in in {
        "share": lambda *_: None,
        "_make": lambda changed: lines["M=8" if changed.codebook_size == 8 else "layer 0, end"],
        "measured": lambda _: found,
    }.items():
        monkeypatch.setattr(ablations, name, stand_in)
    rows = ablations.run([str(run.root), "--only", *lines])["variants"]
    assert rows == {"M=8": found, "layer 0, end": "error: too few states"}
    table, below = capsys.readouterr().out.split("layer 0, end: ")
    assert "95.00" in table and "refused" in table and below == "error: too few states\n"
