"""YAML and overrides: what they give, and what they refuse in one line."""

import pytest

from abscot.common.errors import UserError
from abscot.recipe.load import dump, load_recipe


def test_dump_and_load_are_inverse(tmp_path):
    recipe = load_recipe(None, ["train.lr=2e-4", "lora={r: 8}"])
    (tmp_path / "copy.yaml").write_text(dump(recipe))
    assert load_recipe(tmp_path / "copy.yaml") == recipe
    assert recipe.train.lr == 2e-4 and recipe.lora.r == 8 and recipe.lora.alpha == 64


@pytest.mark.parametrize(
    "override, says",
    [
        ("train.learning_rate=1", "unknown key train.learning_rate"),
        ("trian.lr=1", "did you mean train"),
        ("train.epochs=1.5", "train.epochs: expected a whole number"),
        ("train.epochs=yes", "train.epochs: expected a whole number"),
        ("train.lr=-1", "train.lr"),
        ("staging=stage", "expected one of reuse, partition"),
        ("traces.m_min=500", "traces.m_min"),
        ("train.global_batch_tokens=9", "exactly one of"),
        ("name=../other", "plain directory name"),
        ("train.lr", "expected key.path=value"),
        ("eval.benchmarks=world", "expected a list, e.g."),
    ],
)
def test_a_wrong_key_or_value_is_one_line(override, says):
    with pytest.raises(UserError) as error:
        load_recipe(None, [override])
    assert says in str(error.value) and "\n" not in str(error.value)
