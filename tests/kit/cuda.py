"""Which tests of this session see CUDA.

Tests run on the CPU, on machines with GPUs too: what they assert to the bit, and how long they may
take, holds there. `pytest -m gpu`, `-m vllm` or `-m "gpu or vllm"` shows CUDA to its tests instead;
one process cannot do both, for CUDA looks at the environment once. Nothing heavy is imported here:
this comes first.
"""

import os

import pytest
from _pytest.mark.expression import Expression

from abscot.common import gpus

ON_CPU = ("", "engine", "slurm", "browser", "drill")  # a test of each of these markers alone


def shown_by(expression: str) -> bool:
    """Whether `-m EXPRESSION` selects tests for a GPU, and no other."""

    def selects(marker: str) -> bool:
        return Expression.compile(expression).evaluate(lambda name, **_: name == marker)

    selected = expression and not any(map(selects, ON_CPU))
    return bool(selected and (selects("gpu") or selects("vllm")))


def hide() -> None:
    """From this process and all that it starts; the first is for DeepSpeed's launcher, which sets
    the second anew.
    """
    os.environ |= {gpus.ACCELERATOR: "cpu", gpus.VISIBLE: ""}


def left_out(item: pytest.Item, shown: bool) -> str | None:
    """Why a selected test cannot run in this session."""
    marks = {mark.name for mark in item.iter_markers()}
    whole_run = "small_run" in item.fixturenames
    trains, asks_vllm = "engine" in marks or whole_run, "vllm" in marks or whole_run
    if shown and gpus.count():
        if trains:
            return "it trains on the CPU: run without -m"
        return (
            "vLLM is built for CPUs here: run without -m" if asks_vllm and _vllm_on_cpu() else None
        )
    if "gpu" in marks:
        return "CUDA is hidden: run -m gpu" if gpus.device_files() else "needs a CUDA GPU"
    if asks_vllm and not _vllm_on_cpu():
        return f"vLLM is built for GPUs here{'' if trains else ': run -m vllm'}"
    return None


def _vllm_on_cpu() -> bool:
    from abscot.generation.vllm_engine import built_for_cpu

    return built_for_cpu()
