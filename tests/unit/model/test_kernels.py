"""Which kernels are active and why, Liger's against torch's, and bits that repeat."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from torch.nn.attention import current_flash_attention_impl, restore_flash_attention_impl

from abscot.bench.tools import synthetic_bin
from abscot.common.errors import UserError
from abscot.method.phases import BOTTLENECK
from abscot.model import attention, kernels
from abscot.model.kernels import Active
from abscot.recipe.load import ROOT

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# What FlashAttention-3's package does when it is imported.
FLASH_ATTENTION_3 = """
import torch
library = torch.library.Library("flash_attn_3", "FRAGMENT")
for name in {operators}:
    if not hasattr(torch.ops.flash_attn_3, name):
        library.define(name + "() -> ()")
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A GPU of some kind, and packages that are there or not."""

    def make(capability=(9, 0), **packages: str):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.syspath_prepend(tmp_path)
        for name, source in packages.items():
            (tmp_path / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)

    monkeypatch.setattr(kernels, "_installed", lambda name: (tmp_path / f"{name}.py").exists())
    yield make
    restore_flash_attention_impl(_raise_warn=False)
    sys.modules.pop("flash_attn_interface", None)


def test_active_without_a_gpu(machine):
    assert kernels.active(None) == Active(flash_attention_3=False, liger=False)
    machine(flash_attn_interface="raise ImportError", liger_kernel="")
    assert kernels.active(None) == Active(flash_attention_3=True, liger=True)
    assert kernels.active(CPU) == Active(flash_attention_3=False, liger=False)


def test_choose_on_hopper_activates_flash_attention_3(machine, capsys):
    machine(flash_attn_interface=FLASH_ATTENTION_3.format(operators=["fwd", "bwd"]))
    assert kernels.active(CUDA) == Active(flash_attention_3=True, liger=False)
    assert current_flash_attention_impl() is None
    assert attention.choose("auto", CUDA, torch.bfloat16) == "abscot_varlen"
    assert current_flash_attention_impl() == "FA3"
    assert "attention varlen by FlashAttention-3, torch.bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    "capability, package, says",
    [
        ((8, 0), "", "is for Hopper alone"),
        ((10, 0), "", "is for Hopper alone"),
        ((9, 0), None, "is not installed; get it by ABSCOT_FLASH_ATTENTION_INDEX="),
        ((9, 0), "raise ImportError('undefined\\nsymbol')", "does not load: undefined symbol"),
    ],
)
def test_choose_says_why_flash_attention_3_is_not_used(machine, capsys, capability, package, says):
    machine(capability, **({} if package is None else {"flash_attn_interface": package}))
    assert attention.choose("auto", CUDA, torch.bfloat16) == "abscot_varlen"
    assert not kernels.active(CUDA).flash_attention_3 and current_flash_attention_impl() is None
    out = capsys.readouterr().out
    assert f"varlen by torch's FlashAttention-2 (FlashAttention-3 {says}" in out


def test_fp32_and_old_gpus_attend_by_segments(machine, capsys):
    machine((9, 0))
    assert attention.choose("auto", CUDA, torch.float32) == "abscot_segments"
    assert "attention segments by SDPA, torch.float32 on cuda" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"16-bit weights, found torch.float32 on cuda.*=auto"):
        attention.choose("varlen", CUDA, torch.float32)
    machine((7, 5))
    assert attention.choose("auto", CUDA, torch.bfloat16) == "abscot_segments"


def config(**changes):
    return transformers.Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, **changes
    )


def test_layers_stay_as_they_are_without_liger_or_a_gpu(machine, capsys):
    machine()
    lm = transformers.Qwen3ForCausalLM(config())
    before = repr(lm)
    kernels.fuse(lm, CPU)
    assert capsys.readouterr().out == ""
    kernels.fuse(lm, CUDA)
    assert "liger-kernel is not installed; get it by .venv/bin/python" in capsys.readouterr().out
    assert repr(lm) == before


def liger_against_torch(device: str, **environment: str) -> dict[str, float]:
    """Deviations of RMSNorm, RoPE and SwiGLU in packed documents, forward and backward, full and
    LoRA under checkpointing, and of the loss. In a process of its own: Triton asks for its
    interpreter when it is imported, and what Liger does to transformers lasts.
    """
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "kit" / "liger_layers.py", device],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_liger_is_torch_in_the_interpreter_of_triton():
    worst = liger_against_torch("cpu", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert worst.keys() == {"full", "lora", "loss"} and max(worst.values()) < 1e-5, worst


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_liger_is_torch():
    worst = liger_against_torch("cuda")
    assert max(worst.values()) < 1e-4, worst


def test_models_that_liger_does_not_know_stay_as_they_are():
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    lm = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2))
    before = repr(lm)
    assert kernels.fuse_layers(lm) == [] and repr(lm) == before


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    kernels.make_deterministic()
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG")
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def test_deterministic_attention_has_a_backward(deterministic):
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.utils.deterministic.fill_uninitialized_memory
    packed = synthetic_bin([(3, 5, 2, 4), (2, 0, 1, 3)])
    for backend in ("segments", "dense"):
        layout = attention.layout_of(packed, attention.PREFIX + backend, BOTTLENECK)
        query = torch.randn(1, 4, 20, 8, requires_grad=True)
        attention.BACKENDS[backend](query, query, query, layout).sum().backward()
        assert query.grad.isfinite().all()
