"""Without a model no engine starts."""

import pytest

from abscot.common.errors import UserError
from abscot.generation.vllm_engine import VllmEngine
from abscot.recipe.schema import InferenceConfig


def test_a_missing_model_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no model there"):
        VllmEngine(tmp_path / "absent", InferenceConfig())
