"""The DeepSpeed side: schedule, groups and configuration; then real ranks: loss, LoRA, export,
resume, NaN.
"""

import json
import math
from types import SimpleNamespace

import pytest

from abscot.common.errors import UserError
from abscot.method.phases import NOTHING_HIDDEN
from abscot.recipe.load import load_recipe
from abscot.recipe.schema import TrainConfig
from abscot.training.model_engine import deepspeed_config
from abscot.training.optimizer import lr_at, one_builder_per_host


def schedule(n, **keys):
    config = TrainConfig(**keys)
    return [lr_at(k, n, 1.0, config) for k in range(n)]


def test_cosine_follows_the_formula_and_spends_no_step_at_zero():
    lrs = schedule(100, warmup_ratio=0.05)
    assert lrs[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert lrs[5] == 1.0 and lrs[52] == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert all(a >= b for a, b in zip(lrs[4:], lrs[5:], strict=False)) and 0 < lrs[-1] < 0.01


def test_wsd_holds_then_falls_and_constant_holds():
    lrs = schedule(100, schedule="wsd", warmup_ratio=0.1, min_lr_ratio=0.1)
    assert set(lrs[10:81]) == {1.0} and lrs[90] == pytest.approx(0.55) and lrs[-1] > 0.1
    assert set(schedule(10, schedule="constant", warmup_ratio=0.0)) == {1.0}


def test_one_step_is_taken_at_the_peak():
    assert schedule(1) == [1.0] and schedule(1, warmup_ratio=0.0) == [1.0]


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


def test_a_build_that_was_killed_does_not_block_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    left_over = tmp_path / "cpu_adam" / "lock"
    left_over.parent.mkdir()
    left_over.touch()
    with one_builder_per_host():
        assert not left_over.exists()


def test_a_bin_that_does_not_fit_is_named_before_step_1(monkeypatch):
    import torch

    from abscot.training import trainer
    from abscot.training.trainer import rehearse

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(trainer, "forward_backward", out_of_memory)
    batch = SimpleNamespace(labels=torch.zeros(1, 32_768))
    model_engine = SimpleNamespace(set_gradient_accumulation_boundary=lambda on: None)
    with pytest.raises(
        UserError,
        match=r"most expensive bin of the plan \(32,768 tokens\) before step 1: lower "
        "train.capacity_tokens",
    ):
        rehearse(model_engine, batch, NOTHING_HIDDEN)
