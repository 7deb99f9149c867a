"""The DeepSpeed configuration: what the recipe owns, what is shipped."""

import json

import pytest

from abscot.common.errors import UserError
from abscot.recipe.load import ROOT, load_recipe
from abscot.training.model_engine import deepspeed_config


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_every_deepspeed_config_has_explicit_numbers(path):
    text = path.read_text()
    assert '"auto"' not in text
    tree = json.loads(text)
    assert tree["zero_optimization"]["stage"] in (1, 2, 3)
    # the trainer is the one owner of both
    assert "optimizer" not in tree and "scheduler" not in tree


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"zero_optimization": {"stage": 3}, "optimizer": {}}', "remove optimizer"),
        ('{"zero_optimization": ', "not JSON"),
    ],
)
def test_a_deepspeed_file_that_clashes_is_refused(tmp_path, text, says):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError, match=says):
        deepspeed_config(load_recipe(None, [f"train.deepspeed={tmp_path / 'ds.json'}"]))


def test_the_recipe_owns_batch_clipping_and_precision(tmp_path):
    config = deepspeed_config(load_recipe(None, ["train.grad_clip=0.5", "model.dtype=fp32"]))
    assert config["gradient_clipping"] == 0.5 and config["bf16"]["enabled"] is False
    assert json.dumps(config).count("auto") == 0
