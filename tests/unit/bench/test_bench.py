"""The benchmarks' own arithmetic: what they count, pack and time."""

import json
import subprocess
import sys
import time

import pytest
import torch

from abscot.bench import tools
from abscot.bench.attention import MIXES, document
from abscot.bench.channel import DOCUMENT, Pass, draw
from abscot.bench.step import bins
from abscot.common import hardware
from abscot.recipe.load import ROOT


@pytest.mark.parametrize("tokens", [512, 2048, 8192, 16_384])
def test_documents_have_all_segments_and_their_length(tokens):
    assert sum(document(tokens)) == tokens and min(document(tokens)) > 0
    assert {"2k", "8k", "16k", "32k"} <= {name.split(",")[0] for name in MIXES}


def test_bins_keep_every_row_and_the_capacity():
    rows = [document(tokens) for tokens in (4096, 1950, 1350, 700, 512)]
    packed = bins(rows, 4096)
    assert [row for documents in packed for row in documents] == rows
    assert all(sum(map(sum, documents)) <= 4096 for documents in packed)


def test_two_passes_see_what_they_say():
    ids = draw(5, seed=0)
    whole, second = Pass("XCZY", "ZY"), Pass("XZY", "Y")
    assert torch.equal(ids[:, 3:7], ids[:, -4:])  # the answer is the CoT's digits
    assert len(second.columns) == sum(DOCUMENT.values()) - DOCUMENT["C"]
    assert torch.equal(second.mask[0, 0], torch.ones_like(second.mask[0, 0]).tril())
    assert not whole.mask[0, 0, -1, 3:7].any() and whole.mask[0, 0, -1, 7:].all()


def test_medians_are_of_each_run():
    medians = tools.interleaved_medians(
        {"slow": lambda: time.sleep(0.05), "fast": lambda: None}, repeats=3
    )
    assert medians["slow"] >= 0.05 > medians["fast"]


def test_peak_memory_sees_what_was_freed():
    tools.reset_peak_memory()
    before = hardware.peak_memory_bytes()
    torch.ones(64 * 2**20, dtype=torch.uint8).fill_(2)
    assert 60 * 2**20 < hardware.peak_memory_bytes() - before < 200 * 2**20


def test_the_last_line_is_json():
    command = [sys.executable, "launch/bench.py", "mask", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "mask" and result["allowed_pairs"] == done.stdout.count("#")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what happens without a GPU")
def test_gpu_benchmark_without_a_gpu_is_one_line():
    done = subprocess.run(
        [sys.executable, "launch/bench.py", "gpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no CUDA GPU" in done.stderr
