"""The FLOPs of a step."""

import pytest

from abscot.common import hardware
from abscot.model.shape import QWEN3


def test_useful_flops_and_the_peak_they_are_held_against():
    shape = QWEN3["4B"]
    full, frozen = (shape.training_flops(1000, 0, 100, frozen) for frozen in (False, True))
    assert (
        frozen == pytest.approx(full * 2 / 3)
        and shape.training_flops(1000, 5e5, 100, True) > frozen
    )
    names = (
        "NVIDIA H200",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA GeForce RTX 4090",
    )
    assert [gpu and gpu.name for gpu in map(hardware.gpu_named, names)] == [
        "H200 141 GB",
        "H100 80 GB",
        "A100 40 GB",
        None,
    ]
