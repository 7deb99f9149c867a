"""The learning rate, and the build of an operator."""

import math
from pathlib import Path

import pytest

from abscot.common.errors import UserError
from abscot.recipe.schema import OptimizerConfig, TrainConfig
from abscot.training.optimizer import OPTIMIZERS, lr_at, one_builder_per_host


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


@pytest.fixture
def nothing_loaded(monkeypatch):
    from deepspeed.ops.op_builder.builder import OpBuilder

    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})


def test_cpu_adam_builds_beside_gpus_without_a_cuda_toolkit(nothing_loaded, monkeypatch):
    """What would be compiled where torch sees GPUs and there is no nvcc."""
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
    from torch.utils import cpp_extension

    compiled = {}
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(cpp_extension, "load", lambda **job: compiled.update(job))
    CUDA_Accelerator().create_op_builder("CPUAdamBuilder").jit_load(verbose=False)
    assert {Path(source).suffix for source in compiled["sources"]} == {".cpp"}
    assert all(Path(source).exists() for source in compiled["sources"])
    assert not compiled["with_cuda"] and "-D__ENABLE_CUDA__" not in compiled["extra_cflags"]


def test_where_cpu_adam_does_not_build_the_line_says_what_is_missing(
    nothing_loaded, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "false")  # a compiler that fails
    with pytest.raises(UserError, match=r"CPUAdam.*C\+\+ compiler .* no CUDA toolkit") as refused:
        OPTIMIZERS["adamw"].make_offloaded([], 1e-3, OptimizerConfig(), None)
    assert "\n" not in str(refused.value)
