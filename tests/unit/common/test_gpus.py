"""Which GPUs a process may use; a CUDA that does not work is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from abscot.common import gpus
from abscot.common.errors import MachineError
from abscot.recipe.load import ROOT
from kit.machines import device_files

UUIDS = "GPU-8f6d0d2a-1111,GPU-8f6d0d2a-2222"


@pytest.mark.parametrize(
    "said, expected",
    [
        (None, "0 1 2 3 4 5 6 7"),
        ("4,5", "4 5"),
        (" 7, 0", "7 0"),
        ("0,-1,2", "0"),
        ("3,8,1", "3"),
        ("4,4", ""),
        ("8", ""),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        (UUIDS, UUIDS.replace(",", " ")),
        ("MIG-5c2a/1/0", "MIG-5c2a/1/0"),
    ],
)
def test_the_visible_gpus_are_those_that_cuda_shows(machine, monkeypatch, said, expected):
    """torch's own reading of the variable is the measure."""
    machine(8, **({} if said is None else {gpus.VISIBLE: said}))
    assert gpus.visible() == expected.split()
    assert gpus.count() == len(expected.split())
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: 8)
    monkeypatch.setattr(torch.cuda, "_raw_device_uuid_nvml", lambda: UUIDS.split(","))
    if not (said or "").startswith("MIG"):  # of slices torch asks CUDA itself
        assert torch.cuda._device_count_nvml() == len(expected.split())


def test_a_gpu_that_a_jobs_cgroup_forbids_is_not_counted(machine, monkeypatch):
    """access(2) asks the cgroup; here a stand-in does, for its rules need a kernel and root."""
    machine(8)
    allowed = str(gpus.DEVICES / "nvidia6")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) == allowed and mode == 6)
    assert gpus.visible() == ["0"]


def test_without_a_gpu_there_is_none_whatever_the_variable_says(machine):
    machine(0, built=None, **{gpus.VISIBLE: "0,1"})
    assert gpus.usable() == gpus.visible() == [] and gpus.count() == 0 and not gpus.on_gpu()


@pytest.mark.parametrize(
    "broken, said",
    [
        (
            {"driver": "535.183.01", "runs": 12_020},
            "8 NVIDIA GPUs with driver 535.183.01 (CUDA 12.2), but torch 2.13.0 (CUDA 13.0) needs "
            "driver 580 or newer; have it updated",
        ),
        ({"built": None}, "a build without CUDA; set up for GPUs: ABSCOT_FLAVOUR=gpu bash launch"),
        ({"runs": None}, "no libcuda.so.1, its library; torch 2.13.0 (CUDA 13.0) needs driver 580"),
        ({gpus.VISIBLE: "8,9"}, "CUDA_VISIBLE_DEVICES=8,9: "),
        ({gpus.VISIBLE: "4,4"}, "expected numbers from 0 to 7, or UUIDs, each once"),
    ],
    ids=["old driver", "CPU build", "no library", "no such GPU", "twice"],
)
@pytest.mark.parametrize("start", [gpus.usable, gpus.on_gpu, gpus.prove])
def test_a_cuda_that_does_not_work_is_refused_by_whatever_starts(machine, broken, said, start):
    machine(8, **broken)
    with pytest.raises(MachineError) as refused:
        start()
    assert said in str(refused.value) and "export DS_ACCELERATOR=cpu" in str(refused.value)


def test_a_cuda_that_fails_for_another_reason_gives_torchs_own(machine, monkeypatch):
    def fails():
        raise RuntimeError("Error 802: system not yet initialized\nmore")

    machine(8, starts=False)
    monkeypatch.setattr(torch.cuda, "init", fails)
    assert len(gpus.usable()) == 8  # without CUDA nothing can be told of it
    with pytest.raises(MachineError, match="driver 580.65.06, .*: Error 802: .* initialized; have"):
        gpus.on_gpu()


@pytest.mark.parametrize("wish", [{gpus.VISIBLE: ""}, {gpus.ACCELERATOR: "cpu"}])
def test_who_wants_the_cpu_gets_it_beside_gpus_that_do_not_work(machine, wish):
    machine(8, driver="535.183.01", runs=12_020, **wish)
    gpus.hide_where_asked()
    assert gpus.usable() == [] and not gpus.on_gpu() and os.environ[gpus.VISIBLE] == ""
    assert "not tried" in gpus.prove()


def test_a_gpu_that_cannot_multiply_is_named(machine, monkeypatch):
    machine(1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")
    with pytest.raises(MachineError, match=r"GPU 0 \(Tesla V100\): a matrix product fails: "):
        gpus.prove()  # this torch has no CUDA to multiply with


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_matrix_products_are_right_and_all_gpus_are_counted():
    assert "is right on" in gpus.prove() and gpus.driver() in gpus.prove()
    assert gpus.count() == len(gpus.usable()) == torch.cuda.device_count()


def test_the_version_of_the_driver_comes_from_nvidia_smi_too(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "absent")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.driver() == "unknown"
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 550.90.07\necho 550.90.07\n")
    smi.chmod(0o755)
    assert gpus.driver() == "550.90.07"


def test_the_build_of_torch_is_read_without_importing_it():
    assert gpus._torch_build() == (torch.__version__, torch.version.cuda)


def test_a_run_on_a_machine_with_an_old_driver_ends_in_one_line(tmp_path):
    """A driver's library that runs CUDA 12.2, and the real command."""
    source = tmp_path / "cuda.cpp"
    source.write_text('extern "C" int cuDriverGetVersion(int *v) { *v = 12020; return 0; }\n')
    library = ["g++", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source)]
    subprocess.run(library, check=True)
    script = (
        "import pathlib, runpy, sys; from abscot.common import gpus; "
        f"gpus.DEVICES = pathlib.Path({str(device_files(tmp_path / 'dev', 2))!r}); "
        "gpus._torch_build = lambda: ('2.13.0', '13.0'); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environ = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for name in (gpus.VISIBLE, gpus.ACCELERATOR):
        environ.pop(name, None)
    round_ = [str(ROOT / "launch/round.py"), "--round", "1", "--dry-run"]
    round_ += ["--set", f"run_root={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *round_], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "2 NVIDIA GPUs with driver" in done.stderr and "(CUDA 12.2)" in done.stderr
    assert "needs driver 580 or newer" in done.stderr and not (tmp_path / "tiny-cpu").exists()
    environ[gpus.ACCELERATOR] = "cpu"
    done = subprocess.run(
        [sys.executable, "-c", script, *round_], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0 and "deepspeed --num_gpus 2" in done.stdout.replace(
        str(Path(sys.executable).parent) + "/", ""
    )
