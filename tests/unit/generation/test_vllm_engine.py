"""Without a model no engine starts, nor on hardware that vLLM is not built for."""

import pytest

from abscot.common import gpus
from abscot.common.errors import MachineError, UserError
from abscot.generation import vllm_engine
from abscot.generation.transformers_engine import TransformersEngine
from abscot.generation.vllm_engine import VllmEngine, engine_options
from abscot.recipe.schema import InferenceConfig
from kit.tiny_run import make_model, tiny_tokenizer


def test_a_missing_model_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no model there"):
        VllmEngine(tmp_path / "absent", InferenceConfig())


def test_no_engine_computes_on_a_cpu_beside_gpus_that_it_cannot_use(machine, monkeypatch, tmp_path):
    model = tmp_path / "model"
    make_model(model, tiny_tokenizer(), seed=0)
    machine(2, driver="535.183.01", runs=12_020)
    with pytest.raises(MachineError, match="needs driver 580"):
        engine_options(model, InferenceConfig())
    with pytest.raises(MachineError, match="needs driver 580"):
        TransformersEngine(model, InferenceConfig())
    monkeypatch.setattr(vllm_engine, "built_for_cpu", lambda: True)
    machine(2)
    with pytest.raises(UserError, match="built for CPUs, .*ABSCOT_FLAVOUR=gpu"):
        engine_options(model, InferenceConfig())
    machine(2, **{gpus.VISIBLE: ""})
    assert engine_options(model, InferenceConfig())["enforce_eager"]
    monkeypatch.setattr(vllm_engine, "built_for_cpu", lambda: False)
    with pytest.raises(UserError, match="built for GPUs, .*ABSCOT_FLAVOUR=cpu"):
        engine_options(model, InferenceConfig())
