"""What pip would install on an NVIDIA machine: downloads some gigabytes and installs nothing."""

import json
import os
import re
import subprocess
import sys

import pytest

from abscot.common.gpus import FIRST_DRIVER
from abscot.recipe.load import ROOT

pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def resolved(tmp_path_factory) -> dict[str, str]:
    """Package -> version, of the extra `gpu` with the pinned torch, by pip's own default index:
    what a machine keeps for CPUs (find-links, pip.conf) is left out.
    """
    root = tmp_path_factory.mktemp("pip")
    pinned = re.search(r"torch==\S+", (ROOT / "setup.cfg").read_text())[0]
    options = ["--dry-run", "--ignore-installed", "--no-cache-dir", "--disable-pip-version-check"]
    report, constraints = root / "report.json", root / "constraints.txt"
    options += ["--constraint", str(constraints), "--report", str(report)]
    constraints.write_text(pinned)
    environ = {k: v for k, v in os.environ.items() if k not in ("PIP_FIND_LINKS", "PIP_CONSTRAINT")}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, f"{ROOT}[gpu]"],
        env={**environ, "PIP_CONFIG_FILE": os.devnull, "TMPDIR": str(root)},
        capture_output=True,
        text=True,
    )
    if "Could not find a version" in done.stderr and "(from versions: none)" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr[-3000:]
    installed = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    return {package["name"].lower(): package["version"] for package in installed}


def test_the_gpu_extra_resolves_to_one_cuda_whose_driver_we_name(resolved):
    major = int(resolved["cuda-toolkit"].partition(".")[0])
    assert major == 13 and FIRST_DRIVER[major] == 580
    assert (
        f"cuda/{'.'.join(resolved['cuda-toolkit'].split('.')[:2])}"
        in (ROOT / "slurm" / "site.sh").read_text()
    )
    for package in ("cudnn", "nccl", "cusparselt", "nvshmem"):
        assert f"nvidia-{package}-cu{major}" in resolved
    assert resolved["nvidia-cuda-runtime"].startswith(f"{major}.")
    assert "+" not in resolved["torch"]  # neither +cpu nor another CUDA
