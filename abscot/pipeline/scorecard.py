"""What `launch/bench.py gpu` measured, in place of the rates that are published."""

import dataclasses
import math
from pathlib import Path

from abscot.common import hardware, json_text
from abscot.common.disk import one_line
from abscot.common.errors import UserError
from abscot.common.hardware import FLASH_ATTENTION_2, FLASH_ATTENTION_3, Gpu

TERA = 1e12
MOST = 1.05  # of the data sheet: more than that is another unit
FORWARD, BACKWARD = (f"varlen_{way}_tflops_32k" for way in ("forward", "backward"))
MATMUL, COPY = "matmul_tflops", "copy_bytes_per_s"
KEYS = (MATMUL, FORWARD, BACKWARD, COPY)


def with_measured(gpus: tuple[Gpu, ...], file: Path) -> tuple[Gpu, ...]:
    """`gpus`, of which the kind that was measured reaches what KEYS of part `kernels` say; those
    that are left out stay as published.

    Raises UserError for a file that is no scorecard, or of a GPU that is not among them.
    """
    try:
        part = json_text.parse(Path(file).read_text())["kernels"]
        machine = part["machine"]
        device, third = machine["device"], machine["flash_attention_3"]
        found = {key: part[key] for key in KEYS if key in part}
        gpu = hardware.gpu_named(device)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: expected the JSON of `launch/bench.py gpu --part kernels` "
            f"({type(error).__name__}: {one_line(error)})"
        ) from None
    if gpu is None or not found or part.get("tiny"):
        what = f"measured on {device}" if found else f"none of {', '.join(KEYS)}"
        known = ", ".join(gpu.name for gpu in gpus)
        raise UserError(f"{file}: {what}; expected full shapes on one of {known}")
    _check(file, gpu, found)
    measured = _measured(gpu, found, FLASH_ATTENTION_3 if third else FLASH_ATTENTION_2)
    return tuple(measured if other.name == gpu.name else other for other in gpus)


def _check(file: Path, gpu: Gpu, found: dict) -> None:
    for key, value in found.items():
        unit, peak = (1, gpu.bandwidth) if key == COPY else (TERA, gpu.flops)
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not is_number or not 0 < value * unit <= MOST * peak:
            raise UserError(
                f"{file}: kernels.{key}: expected a number above 0, at most {peak / unit:g} "
                f"({gpu.name}), found {value!r:.40}"
            )


def _measured(gpu: Gpu, found: dict, kernel: str) -> Gpu:
    rates = gpu.reached
    forward, backward = rates.attention[kernel]
    reached = dataclasses.replace(
        rates,
        matmul=found[MATMUL] * TERA if MATMUL in found else rates.matmul,
        attention={
            **rates.attention,
            kernel: (
                found[FORWARD] * TERA if FORWARD in found else forward,
                found[BACKWARD] * TERA if BACKWARD in found else backward,
            ),
        },
        copy=found.get(COPY, rates.copy),
    )
    return dataclasses.replace(gpu, reached=reached)
