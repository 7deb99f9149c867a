"""Machines with GPUs that are not there: their device files, and what torch and the driver say."""

from pathlib import Path

import pytest
import torch

from abscot.common import gpus

OPEN_DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder)\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)


def device_files(root: Path, number: int) -> Path:
    """A /dev of so many GPUs, and of the other files that the driver puts there."""
    root.mkdir(parents=True, exist_ok=True)
    for name in (*(f"nvidia{i}" for i in range(number)), "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (root / name).touch()
    return root


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this process believe that it runs on a machine of `number` GPUs: with a driver, the
    CUDA that it runs, the CUDA that torch was built for, whether torch's CUDA starts, and
    environment variables.
    """

    def become(
        number, driver="580.65.06", runs=13_000, built="13.0", starts=True, **environ
    ) -> None:
        for name in (gpus.VISIBLE, gpus.ACCELERATOR):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        version = tmp_path / "version"
        version.write_text(OPEN_DRIVER.format(driver))
        monkeypatch.setattr(gpus, "DEVICES", device_files(tmp_path / "dev", number))
        monkeypatch.setattr(gpus, "DRIVER", version)
        monkeypatch.setattr(gpus, "_cuda_of_driver", lambda: runs)
        monkeypatch.setattr(gpus, "_torch_build", lambda: ("2.13.0", built))
        works = starts and built is not None and runs is not None and runs // 1000 >= 13
        monkeypatch.setattr(torch.cuda, "is_available", lambda: works and bool(gpus.visible()))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus.count() if works else 0)

    return become
