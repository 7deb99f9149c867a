"""The run directory belongs to one recipe."""

import pytest

from abscot.common.errors import UserError
from abscot.recipe.load import load_recipe
from abscot.recipe.run import claim


def test_a_run_directory_belongs_to_one_recipe(tmp_path):
    root = f"run_root={tmp_path}"
    run = claim(load_recipe(None, [root]))
    claim(load_recipe(None, [root, "train.lr=0.25"]))  # nothing was made yet
    claim(load_recipe(None, [root]))
    (run.root / "shards").mkdir()
    before = run.config.read_text()
    with pytest.raises(UserError, match=r"train.lr is .* there, 0.5 here"):
        claim(load_recipe(None, [root, "train.lr=0.5"]))
    assert run.config.read_text() == before
    claim(load_recipe(None, [root, "eval.limit=7"]))  # how a model is asked may change
    assert "limit: 7" in run.config.read_text()
    claim(load_recipe(None, [root, "traces.shards=4"]))  # and how many engines make its traces
    claim(load_recipe(None, [root, "model.keep_attention=false"]))  # and what stays in memory


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "tiny-cpu").mkdir()
    (tmp_path / "tiny-cpu" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a run"):
        claim(load_recipe(None, [f"run_root={tmp_path}"]))
