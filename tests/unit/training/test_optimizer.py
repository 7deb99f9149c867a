"""The learning rate, and the build of an operator."""

import math

import pytest

from abscot.recipe.schema import TrainConfig
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
    lrs = schedule(100, lr_schedule="wsd", warmup_ratio=0.1, min_lr_ratio=0.1)
    assert set(lrs[10:81]) == {1.0} and lrs[90] == pytest.approx(0.55) and lrs[-1] > 0.1
    assert set(schedule(10, lr_schedule="constant", warmup_ratio=0.0)) == {1.0}


def test_one_step_is_taken_at_the_peak():
    assert schedule(1) == [1.0] and schedule(1, warmup_ratio=0.0) == [1.0]


def test_a_build_that_was_killed_does_not_block_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    left_over = tmp_path / "cpu_adam" / "lock"
    left_over.parent.mkdir()
    left_over.touch()
    with one_builder_per_host():
        assert not left_over.exists()
