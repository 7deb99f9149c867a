"""What the benchmarks share: synthetic packed bins, interleaved timing, peak memory from an own
process.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from abscot.common.hardware import cpu_has_bf16, device_name
from abscot.method.phases import SEGMENT_C, SEGMENT_PAD, SEGMENT_X, SEGMENT_Y, SEGMENT_Z
from abscot.method.sequence import IGNORE

Document = tuple[int, int, int, int]  # tokens of X, C, Z, Y


@dataclass
class Bin:
    """One packed bin, the fields of a training batch; all [1, T]."""

    input_ids: torch.Tensor  # int64
    labels: torch.Tensor  # int64, -100 where unsupervised
    position_ids: torch.Tensor  # int64, from 0 in each document
    document_id: torch.Tensor  # int32, -1 where padding
    segment_id: torch.Tensor  # int8, SEGMENT_*

    def to(self, device) -> "Bin":
        return Bin(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def synthetic_bin(
    documents: list[Document], vocab_size: int = 1000, seed: int = 0, pad_to_tokens: int = 0
) -> Bin:
    """Random tokens in documents of the given segment lengths, Z and Y supervised; padding at the
    end.
    """
    segments, positions, owners = [], [], []
    for index, document in enumerate(documents):
        for segment, tokens in zip(
            (SEGMENT_X, SEGMENT_C, SEGMENT_Z, SEGMENT_Y), document, strict=True
        ):
            segments += [segment] * tokens
        positions += range(sum(document))
        owners += [index] * sum(document)
    padding = max(0, pad_to_tokens - len(segments))
    segment_id = torch.tensor([segments + [SEGMENT_PAD] * padding], dtype=torch.int8)
    document_id = torch.tensor([owners + [-1] * padding], dtype=torch.int32)
    position_ids = torch.tensor([[*positions, *[0] * padding]])
    input_ids = torch.randint(
        vocab_size, segment_id.shape, generator=torch.Generator().manual_seed(seed)
    )
    supervised = (segment_id >= SEGMENT_Z) & (position_ids > 0)
    return Bin(
        input_ids, torch.where(supervised, input_ids, IGNORE), position_ids, document_id, segment_id
    )


def interleaved_medians(
    runs: dict[str, Callable[[], object]], repeats: int, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each run, in turns after a warm-up, so that a busy machine slows
    all alike.
    """
    times = {name: [] for name in runs}
    for repeat in range(not warm_up, repeats + 1):
        for name, run in runs.items():
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            if repeat:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_own_process(module: str, *arguments: str) -> dict:
    """The JSON object that `python -m module arguments` prints last; its peak memory is of nothing
    else.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def reset_peak_memory() -> None:
    """From here on `peak_memory_bytes` knows only what comes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def available_memory_bytes() -> int:
    """Memory that a new allocation could have: of the GPU where there is one, otherwise of the
    machine.
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def environment() -> dict:
    """Where a result was measured."""
    cuda = torch.cuda.is_available()
    return {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "bf16_in_hardware": cuda or cpu_has_bf16(),
        "torch": torch.__version__,
    }


def table(title: str, header: list[str], rows: list[list]) -> str:
    """Text columns; the first is left-aligned."""
    cells = [
        header,
        *[[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows],
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [title]
    for name, *numbers in cells:
        padded = [
            name.ljust(widths[0]),
            *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True)),
        ]
        lines.append("  " + "  ".join(padded))
    return "\n".join(lines)
