"""The machine: kinds of GPUs, the dtypes it computes in, the memory that a process takes.

torch is imported where it is needed: a command that only starts other commands must not wait for
it.
"""

import contextlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from abscot.common.gpus import on_gpu


@dataclass(frozen=True)
class Rates:
    """What kernels and collectives reach, per second. attention: kernel -> FLOPs of its forward and
    of its backward, over allowed pairs of packed documents.
    """

    matmul: float  # FLOPs
    attention: dict[str, tuple[float, float]]
    copy: float  # bytes, read and written
    node: float  # bytes that reach a GPU in a collective of 8 on NVLink
    network: float  # the same between machines with a network card for each GPU


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gb: float
    flops: float  # dense bf16, per second
    bandwidth: float  # bytes of memory per second
    reached: Rates


FLASH_ATTENTION_2, FLASH_ATTENTION_3 = "FlashAttention-2", "FlashAttention-3"
# FlashAttention-3: published for causal-document masks of 8k tokens on an H100. -2: that, times its
# share of -3's in arXiv 2407.08608 (head_dim 128, 8k: 333 of 602 forward, 318 of 559 backward).
_HOPPER = {FLASH_ATTENTION_2: (268e12, 182e12), FLASH_ATTENTION_3: (485e12, 320e12)}
# 186 forward (A100, 32 and 8 heads, 4k) and 63% of the peak backward (arXiv 2307.08691) on whole
# causal masks, times what documents leave of them on an H100: 0.81 and 0.57.
_AMPERE = {FLASH_ATTENTION_2: (150e12, 113e12)}
# Memory, peak: NVIDIA's data sheets. Matrix products: 0.85 (assumed) of the most that any shape was
# measured to reach, 267.9 and 794.5 (Bekman, ML Engineering). Copies: 0.9 of the data sheet.
# Collectives: nccl-tests#212 (NVSwitch, without reductions in it), nccl#1218 (all_gather of 2 GB by
# 256 H100 with 400 Gb/s each), and half of the latter for the A100's 200 Gb/s.
GPUS = (
    Gpu("A100 40 GB", 40, 312e12, 1.56e12, Rates(228e12, _AMPERE, 1.40e12, 230e9, 100e9)),
    Gpu("H100 80 GB", 80, 989e12, 3.35e12, Rates(675e12, _HOPPER, 3.02e12, 370e9, 200e9)),
    Gpu("H200 141 GB", 141, 989e12, 4.8e12, Rates(675e12, _HOPPER, 4.32e12, 370e9, 200e9)),
)


def gpu_named(device_name: str) -> Gpu | None:
    """The GPU of the table that a driver's name ("NVIDIA H200") means; None for others."""
    return next((gpu for gpu in GPUS if gpu.name.split()[0] in device_name), None)


def device_name() -> str:
    """The GPU's name, or the processor's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.machine()


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; where not, fp32 is 2 to 9 times faster."""
    import torch

    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compute_dtype(tensor):
    """The dtype to multiply `tensor` in: its own, or fp32 for 16 bits on a CPU without bf16."""
    import torch

    slow = tensor.device.type == "cpu" and tensor.element_size() == 2 and not cpu_has_bf16()
    return torch.float32 if slow else tensor.dtype


def inference_dtype(requested: str) -> str:
    """`bfloat16` or `float32` for inference.dtype; `auto` takes bf16 where hardware computes it."""
    if requested != "auto":
        return {"bf16": "bfloat16", "fp32": "float32"}[requested]
    return "bfloat16" if on_gpu() or cpu_has_bf16() else "float32"


@contextlib.contextmanager
def one_thread():
    """Inside, the CPU adds in one order, however many cores it has."""
    import threadpoolctl
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpoolctl.threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def peak_memory_bytes() -> int:
    """The most memory that this process has taken: reserved by torch on a GPU, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
