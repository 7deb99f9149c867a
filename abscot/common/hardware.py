"""The machine: its GPUs, the dtypes it computes in, the memory that a process takes.

torch is imported where it is needed: a command that only starts other commands must not wait for
it.
"""

import contextlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gb: float
    flops: float  # dense bf16, per second
    bandwidth: float  # bytes of memory per second


GPUS = (  # NVIDIA's data sheets
    Gpu("A100 40 GB", 40, 312e12, 1.56e12),
    Gpu("H100 80 GB", 80, 989e12, 3.35e12),
    Gpu("H200 141 GB", 141, 989e12, 4.8e12),
)


def gpu_named(device_name: str) -> Gpu | None:
    """The GPU of the table that a driver's name ("NVIDIA H200") means; None for others."""
    return next((gpu for gpu in GPUS if gpu.name.split()[0] in device_name), None)


def local_gpus() -> int:
    """CUDA GPUs of this machine, counted without starting CUDA; 1 where there is none."""
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) or 1


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
    import torch

    if requested != "auto":
        return {"bf16": "bfloat16", "fp32": "float32"}[requested]
    return "bfloat16" if torch.cuda.is_available() or cpu_has_bf16() else "float32"


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
