"""`bench.py gpu --tiny`: the flow of every part on a CPU, on real ranks and a real vLLM engine."""

import json
import subprocess
import sys

import pytest

from abscot.bench.gpu_scorecard import EXACT_WITHIN, PARTS
from abscot.bench.gpu_trainer import STEPS_TO_THE_END
from abscot.recipe.load import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.vllm]


def test_every_part_drives_the_product_and_adds_to_the_scorecard(tmp_path):
    out = tmp_path / "card.json"
    done = subprocess.run(
        [sys.executable, "launch/bench.py", "gpu", "--tiny", "--json", "--out", out],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    card = json.loads(out.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == {"benchmark": "gpu", **card}
    assert not {"error", "skipped"} & {key for name in PARTS for key in card[name]}, done.stdout
    failed = [c for name in PARTS for c in card[name]["cases"].values() if "error" in c]
    assert not failed, done.stdout
    left_out = {case for name in PARTS for case in card[name]["left_out"]}
    assert left_out == {"tests"}  # of kernels, which need a GPU
    exact = card["kernels"]["cases"]["segments, exact"]
    assert max(exact[key] for key in ("out", "query", "key", "value")) < EXACT_WITHIN
    assert card["kernels"]["matmul_tflops"] > 0 and card["kernels"]["copy_bytes_per_s"] > 0
    assert all(case["tokens_per_s"] > 0 for case in card["step"]["cases"].values())
    (trained,) = card["trainer"]["cases"].values()
    assert trained["ranks"] == 2 and trained["steps"] == STEPS_TO_THE_END  # each of full bins
    assert all(trained[f"{what}_s"] > 0 for what in ("rehearsal", "stop", "resume", "export"))
    assert 0.3 < trained["peak_bytes"] / trained["planned_bytes"] < 3
    (chunk,) = card["traces"]["cases"].values()
    assert chunk["handover_kl"] < 0.015 and chunk["traces_per_s"] > 0
    # Further samples of a prompt find it in the prefix cache, but for its last block.
    assert 0 < 0.9 * chunk["sessions_repeated_share"] < chunk["sessions_cached_share"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "card.json",
        "card.lock",
        "card.logs",
    ]
