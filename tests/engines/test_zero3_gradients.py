"""Gradients of ZeRO-3 ranks are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from abscot.common.process import free_port
from abscot.recipe.load import ROOT

pytestmark = pytest.mark.engine


def test_zero3_ranks_have_the_gradients_of_one_process():
    launcher = [
        Path(sys.executable).with_name("deepspeed"),
        "--num_gpus=2",
        f"--master_port={free_port()}",
    ]
    done = subprocess.run(
        [*launcher, ROOT / "tests" / "kit" / "zero3_gradients.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    assert "worst difference" in done.stdout
