"""Kernels that are not torch's own, where they are installed and fit the GPU: FlashAttention-3 for
packed attention, Liger for the layers' RMSNorm, RoPE and SwiGLU (and for the loss: loss.py). Which
are active is logged at start. And: how all kernels are made to repeat their bits.
"""

import importlib
import importlib.util
import inspect
import os
from dataclasses import dataclass

import torch
from torch.nn.attention import activate_flash_attention_impl

from abscot.common.log import log

HOPPER = (9, 0)
GET_FLASH_ATTENTION_3 = (
    "ABSCOT_FLASH_ATTENTION_INDEX=URL bash launch/setup.sh, where URL is torch's own package index "
    "for this CUDA"
)
GET_LIGER = ".venv/bin/python -m pip install -e '.[gpu]'"
# Flags of Liger's functions, and what they fuse.
FUSED = {"rms_norm": "RMSNorm", "rope": "RoPE", "swiglu": "SwiGLU", "geglu": "GeGLU"}


@dataclass(frozen=True)
class Active:
    """Which of them attention `varlen`, the layers and the loss run on."""

    flash_attention_3: bool
    liger: bool


def active(device: torch.device | None) -> Active:
    """What is active on `device`; None: what this environment has for a GPU that is not here (of
    which FlashAttention-3 serves Hopper alone). CUDA is started for a CUDA device only.
    """
    if device is None:
        return Active(_installed("flash_attn_interface"), _installed("liger_kernel"))
    cuda = device.type == "cuda"
    return Active(
        cuda and not _why_no_flash_attention_3(device), cuda and _installed("liger_kernel")
    )


def use_flash_attention(device: torch.device) -> str:
    """Which FlashAttention `varlen` runs on from now on, in words: on the CUDA `device` the third
    takes the place of torch's second where it can.
    """
    if why := _why_no_flash_attention_3(device):
        return f"torch's FlashAttention-2 (FlashAttention-3 {why})"
    activate_flash_attention_impl("FA3")
    return "FlashAttention-3"


def fuse(lm, device: torch.device) -> None:
    """RMSNorm, RoPE and SwiGLU of `lm` in Liger's kernels where `device` is a CUDA GPU; logs which.

    lm: a model of transformers, before peft and DeepSpeed have it: its modules and parameters stay,
    their forwards change. Every model of its kind that this process makes later is fused too.
    """
    if device.type != "cuda":
        return
    unfused = "kernels: RMSNorm, RoPE and SwiGLU by torch, several passes over memory each: "
    if not active(device).liger:
        log(f"{unfused}liger-kernel is not installed; get it by {GET_LIGER}")
    elif fused := fuse_layers(lm):
        log(f"kernels: {', '.join(fused)} by Liger")
    else:
        log(f"{unfused}Liger does not know models of type {lm.config.model_type}")


def fuse_layers(lm) -> list[str]:
    """What Liger now does in the layers of `lm`; empty for a model that it does not know."""
    from liger_kernel import backends
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(lm.config.model_type)
    if apply is None or not type(lm).__module__.startswith("transformers."):
        return []
    known = inspect.signature(apply).parameters
    # The loss is ours (loss.py), and Liger takes every MLP for one with SiLU.
    wanted = {name: known[name].default is True for name in FUSED if name in known}
    if "swiglu" in wanted:
        wanted["swiglu"] = lm.config.hidden_act in ("silu", "swish")
    losses = {n: False for n in ("cross_entropy", "fused_linear_cross_entropy") if n in known}
    backends.set_impl("nvidia-triton")  # and no other that packages of vLLM would bring in
    apply(model=lm, **wanted, **losses)
    return [FUSED[name] for name, on in wanted.items() if on]


def make_deterministic() -> None:
    """From now on equal batches give equal bits on a GPU too (on one kind of GPU, on as many
    ranks). To be called before CUDA starts.

    What torch has no deterministic kernel for raises in the rehearsal. FlashAttention-2 and -3 heed
    torch's switch in their backward, as NCCL does (no sums in NVLink's switches); Liger's kernels
    add nothing atomically.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Nothing reads memory that was not written: filling it with NaN would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _why_no_flash_attention_3(device: torch.device) -> str:
    """Empty where it can be used on the CUDA `device`."""
    if torch.cuda.get_device_capability(device) != HOPPER:
        return "is for Hopper alone"
    if not _installed("flash_attn_interface"):
        return f"is not installed; get it by {GET_FLASH_ATTENTION_3}"
    try:
        importlib.import_module("flash_attn_interface")
    except (ImportError, OSError) as error:  # built for another torch or CUDA
        return f"does not load: {' '.join(str(error).split())[:200]}"
    missing = [name for name in ("fwd", "bwd") if not hasattr(torch.ops.flash_attn_3, name)]
    return f"lacks {', '.join(missing)}: its build cannot train" if missing else ""
