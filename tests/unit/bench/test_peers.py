"""The peers bench: both sides get the same rows, what it says of them, and what it says without
TRL.
"""

import importlib.metadata
import re

import numpy as np
import pytest
import torch

from abscot.bench import peers
from abscot.bench.peers_ours import data_of, rows_of
from abscot.bench.synthetic_rows import write_store, write_traces
from abscot.bench.turns import Side
from abscot.common.errors import StageCrashed, UserError
from abscot.method.lineage import training_of
from abscot.method.sequence import IGNORE
from abscot.recipe.load import ROOT
from abscot.recipe.run import claim


@pytest.fixture(scope="module", params=peers.PHASES_COMPARED)
def data(request, tmp_path_factory):
    """A training's data without its model."""
    recipe = peers.recipe_of(tmp_path_factory.mktemp("peers") / "run", 2, "bf16")
    run = claim(recipe)
    store = write_store(run, np.array(peers.ROWS), vocab_size=5000)
    training = training_of(recipe, run, request.param, 1)
    if training.reads_traces:
        write_traces(training, store)
    run.base.mkdir()
    (run.base / "config.json").write_text(SHAPE)
    return data_of(training)


SHAPE = """{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16,
"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 5000}"""


def test_a_step_holds_the_rows_that_trl_gets(data):
    """Token by token and label by label, in every step, in the bins that the page speaks of."""
    given = {tuple(row["input_ids"]): row["completion_mask"] for row in rows_of(data.documents)}
    assert len(given) == len(peers.ROWS) and data.plan.num_steps == 2
    for _, micro_batches in data.batches(0):
        assert len(micro_batches) == (2 if data.training.phase.sees_cot else 1)
        found = {}
        for batch in micro_batches:
            starts = (batch.position_ids[0] == 0).nonzero().flatten().tolist()
            for document in torch.arange(batch.labels.numel()).tensor_split(starts)[1:]:
                labels, tokens = batch.labels[0, document], batch.input_ids[0, document]
                assert torch.equal(labels[labels != IGNORE], tokens[labels != IGNORE])
                found[tuple(tokens.tolist())] = (labels != IGNORE).int().tolist()
        assert found == given


def test_the_results_are_of_the_phases_that_compute_the_same():
    def side(seconds, loss, peak_bytes):
        step = {"cpu_seconds": 1.0, "tokens": 100, "bins": 1, "loss": loss}
        first = {**step, "seconds": 99.0, "peak_bytes": 1}
        later = {**step, "seconds": seconds, "loss": 5.0, "peak_bytes": peak_bytes}
        return peers.summary([first, later])

    found = peers.results(
        {
            "sft_no_cot": {"ours": side(1.0, 12.0, 10), "TRL": side(3.0, 12.00002, 20)},
            "B": {"ours": side(1.0, 12.0, 18), "TRL": side(2.0, 12.00001, 20)},
            "A": {"ours": side(1.0, 9.0, 90), "TRL": side(1.25, 12.0, 20)},
        }
    )
    assert found.pop("sides")["B"]["ours"]["tokens_per_s"] == 100
    assert found == pytest.approx(
        {
            "over_trl_4k": 2.0,
            "memory_ratio_trl_4k": 0.9,
            "loss_gap": 2e-5,
            "phase_a_over_trl_4k": 1.25,
        }
    )


@pytest.mark.parametrize("found", [None, "0.9.1"])
def test_without_its_trl_one_line_says_how_to_install_it(monkeypatch, found):
    def version(name):
        if found:
            return found
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError) as refused:
        peers.run(["--repeats", "1"])
    line = str(refused.value)
    assert f"found {found or 'none'};" in line and "\n" not in line
    assert re.search(r"pip install --no-deps --target \.peers trl==[\d.]+, then: ", line)


def test_a_side_steps_when_told_and_says_why_it_died(tmp_path, monkeypatch):
    (tmp_path / "stub_side.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    with Side("stub_side", "7") as side:
        step = side.step()
        with pytest.raises(StageCrashed, match="one step is all I have"):
            side.step()
    assert step["tokens"] == 7 and step["peak_bytes"] > 2**20
    assert 0.2 <= step["seconds"] < 30 and step["cpu_seconds"] < step["seconds"]


STUB = """
import sys, time
from abscot.bench.turns import Turn
reports, tokens = sys.argv[1:]
print("libraries print as they like")
turn = Turn(reports)
turn.begin()
time.sleep(0.2)
turn.end()
turn.report(loss=1.0, tokens=int(tokens), bins=1)
sys.exit("one step is all I have")
"""
