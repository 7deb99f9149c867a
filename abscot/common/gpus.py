"""The GPUs that this process may use, and whether torch can use them.

A CUDA that does not work must not become work on the CPU: where GPUs are visible and torch cannot
compute on them, what would have used them raises. `DS_ACCELERATOR=cpu`, or an empty
CUDA_VISIBLE_DEVICES, says that the CPU is meant.

torch is imported where it is needed: a command that only starts other commands must not wait.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import runpy
import subprocess
from pathlib import Path

from abscot.common.errors import MachineError, shown

DEVICES = Path("/dev")
DRIVER = Path("/proc/driver/nvidia/version")
VISIBLE = "CUDA_VISIBLE_DEVICES"
ACCELERATOR = "DS_ACCELERATOR"
NONE_VISIBLE = ("", "-1", "NoDevFiles", "none")  # the third is Slurm's
# CUDA's major version -> the first driver that runs it (CUDA toolkit release notes, table of minor
# version compatibility).
FIRST_DRIVER = {12: 525, 13: 580}
USE_CPU = "to compute on the CPUs all the same: export DS_ACCELERATOR=cpu"


def hidden() -> bool:
    """Whether somebody has said that no GPU is to be used."""
    said = os.environ.get(VISIBLE)
    return os.environ.get(ACCELERATOR) == "cpu" or (
        said is not None and said.split(",")[0].strip() in NONE_VISIBLE
    )


def hide_where_asked() -> None:
    """DS_ACCELERATOR=cpu, DeepSpeed's own word, then holds for torch and vLLM too; an empty
    CUDA_VISIBLE_DEVICES is lost on the way to a rank, since DeepSpeed's launcher sets it anew, on
    CPUs as well. To be called before CUDA is asked for anything.
    """
    if os.environ.get(ACCELERATOR) == "cpu":
        os.environ[VISIBLE] = ""


def device_files() -> int:
    """GPUs that this process may open. access(2) asks a job's device cgroup as open(2) would, and
    does not wake the GPU.
    """
    files = (path for path in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    return sum(os.access(path, os.R_OK | os.W_OK) for path in files)


def visible() -> list[str]:
    """The GPUs that CUDA shows this process, by their names in CUDA_VISIBLE_DEVICES: numbers, or
    UUIDs of GPUs and MIG slices. CUDA is not started.
    """
    number, said = device_files(), os.environ.get(VISIBLE)
    if hidden() or not number:
        return []
    return list(map(str, range(number))) if said is None else _named(said, number)


def _named(said: str, number: int) -> list[str]:
    """As CUDA reads the variable: up to the first name that it does not know; nothing where one
    stands there twice.
    """
    names = []
    for word in map(str.strip, said.split(",")):
        if not (word.isdecimal() and int(word) < number or word.startswith(("GPU-", "MIG-"))):
            break
        names.append(word)
    return names if len(set(names)) == len(names) else []


def count() -> int:
    """GPUs that CUDA shows this process; 0 where there is none."""
    return len(visible())


def usable() -> list[str]:
    """`visible()`, for who is about to start something on them. CUDA is not started. Raises
    MachineError where torch could not use them.
    """
    number, found = device_files(), visible()
    if hidden() or not number:
        return []
    said = os.environ.get(VISIBLE)
    if said is not None and len(found) < len(said.split(",")):
        raise MachineError(
            f"{VISIBLE}={shown(said)}: {_here(number)}; expected numbers from 0 to {number - 1}, "
            f"or UUIDs, each once; {USE_CPU}"
        )
    _check_build_and_driver(number)
    return found


def on_gpu() -> bool:
    """Whether torch computes on GPUs in this process. Raises MachineError where GPUs are visible
    and it cannot.
    """
    import torch

    if hidden():
        return False
    if torch.cuda.is_available():
        return True
    if not usable():
        return False
    reason = "no reason given"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = shown(str(error).strip().partition("\n")[0], 200)
    raise MachineError(
        f"{_here(device_files())} with driver {driver()}, but CUDA does not start: {reason}; have "
        f"it mended, or take another machine; {USE_CPU}"
    )


def prove() -> str:
    """A matrix product on each GPU, compared with the CPU's. Returns what was proved, in words.
    Raises MachineError where a GPU does not compute, or computes something else.
    """
    import torch

    if not on_gpu():
        return "no GPU is visible here: CUDA was not tried"
    left, right = torch.randn(512, 256), torch.randn(256, 512)
    expected = left @ right
    for index in range(torch.cuda.device_count()):
        name = f"GPU {index} ({torch.cuda.get_device_name(index)})"
        try:
            got = (left.to(f"cuda:{index}") @ right.to(f"cuda:{index}")).cpu()
        except (RuntimeError, AssertionError) as error:
            reason = shown(str(error).strip().partition("\n")[0], 200)
            raise MachineError(f"{name}: a matrix product fails: {reason}") from error
        if not torch.allclose(got, expected, rtol=1e-2, atol=1e-1):
            raise MachineError(f"{name}: a matrix product is wrong; the GPU is not to be trusted")
    return f"a matrix product is right on {_gpus(torch.cuda.device_count())}, driver {driver()}"


def driver() -> str:
    """The version of the NVIDIA driver that runs here."""
    if DRIVER.exists():
        found = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text().partition("\n")[0])
        if found:
            return found[0]
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.split()[0]
    return "unknown"


def _here(number: int) -> str:
    return f"{platform.node()} has {_gpus(number)}"


def _gpus(number: int) -> str:
    return f"{number} NVIDIA GPU{'s' * (number > 1)}"


def _check_build_and_driver(number: int) -> None:
    """Raises MachineError where torch is a build without CUDA, or the driver too old for it."""
    version, cuda = _torch_build()
    if cuda is None:
        raise MachineError(
            f"{_here(number)}, but torch {version} is a build without CUDA; set up for GPUs: "
            f"ABSCOT_FLAVOUR=gpu bash launch/setup.sh; {USE_CPU}"
        )
    major, offered = int(cuda.partition(".")[0]), _cuda_of_driver()
    first = FIRST_DRIVER.get(major)
    needed = f"torch {version} (CUDA {cuda}) needs driver {f'{first} or newer' if first else cuda}"
    if offered is None:
        raise MachineError(
            f"{_here(number)} with driver {driver()}, but no libcuda.so.1, its library; {needed}; "
            f"a container wants --nv or --gpus all; {USE_CPU}"
        )
    if offered // 1000 < major:
        raise MachineError(
            f"{_here(number)} with driver {driver()} (CUDA {offered // 1000}."
            f"{offered % 1000 // 10}), but {needed}; have it updated; {USE_CPU}"
        )


def _torch_build() -> tuple[str, str | None]:
    """torch's version, and that of the CUDA that it was built for; read, not imported."""
    package = Path(importlib.util.find_spec("torch").origin).parent
    build = runpy.run_path(str(package / "version.py"))
    return build["__version__"], build["cuda"]


def _cuda_of_driver() -> int | None:
    """The newest CUDA that the driver's library runs, 12020 for 12.2; None where there is none. The
    library is asked, since one for forward compatibility (cuda-compat) runs a newer CUDA than the
    driver's own.
    """
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value
