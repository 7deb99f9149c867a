"""The main job end to end, at a small size: every stage on the real engines, then what a user does
with the result.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from abscot.common import files
from abscot.data.shards import ShardStore
from abscot.generation.trace_set import TraceSet
from abscot.method.lineage import trainings
from abscot.method.vocab import AbstractVocab, load_tokenizer
from abscot.pipeline.stages import stages_of
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run
from kit.small_run import launch, overrides_of

pytestmark = [pytest.mark.engine, pytest.mark.vllm]


def test_every_stage_is_done_and_the_table_is_printed(small_run):
    assert all(stage.done() for stage in stages_of(small_run.recipe))
    for words in ("thinking", "abstract", "index.html"):
        assert words in small_run.output
    assert (small_run.run.report / "report.md").stat().st_size > 1000
    html = (small_run.run.report / "index.html").read_text()
    assert "data:image/png;base64" in html and not re.search(
        r'(src|href)="https?://', html.split("<body")[0]
    )


def test_no_checkpoint_is_left_where_engines_have_agreed_with_all_models(small_run):
    """vLLM with those that write traces or answer; the next training with one that does not."""
    assert list(small_run.run.root.glob("checkpoints/*/*step_*")) == []
    said = [path.read_text() for path in sorted(small_run.run.logs.glob("*.log"))]
    for training in trainings(small_run.recipe, small_run.run):
        gone = rf"{training.tag}/step_\d+ removed, which was kept until now"
        assert len(re.findall(gone, "".join(said))) == 1


def test_a_second_start_finds_everything_done(small_run):
    began = time.monotonic()
    done = small_run.launch("round.py", "--round", "all")
    assert done.returncode == 0 and " .." not in done.stdout
    assert done.stdout.count("done before") == len(stages_of(small_run.recipe))
    assert time.monotonic() - began < 60


def test_traces_hold_only_the_codebook_and_their_lengths(small_run):
    recipe, run = small_run.recipe, small_run.run
    store = ShardStore(run.shards)
    allowed = set(AbstractVocab.of(load_tokenizer(run.base), recipe.codebook_size).codebook_ids)
    for training in trainings(recipe, run):
        traces = TraceSet.load(training.traces, store, training.round, training.phase.name)
        assert traces.rows.tolist() == training.trace_rows(len(store)).tolist()
        lengths = traces.all_lengths()
        assert recipe.traces.m_min <= lengths.min() and lengths.max() <= recipe.traces.m_max
        assert {int(i) for row in traces.rows for i in traces.trace(row)} <= allowed


def test_the_first_traces_are_the_codes_of_the_steps_of_their_cots(small_run):
    """Made by two processes, with the codebook that is part of the run."""
    recipe, run = small_run.recipe, small_run.run
    files.verify(run.codebook)
    store = ShardStore(run.shards)
    traces = TraceSet.load(run.traces("pi1_phaseA"), store, 1, "A")
    assert len(traces) == len(store)
    assert set(traces.all_lengths()) == {recipe.world.swaps * recipe.grounding.tokens_per_step}
    stats = json.loads((run.traces("pi1_phaseA") / "stats.json").read_text())
    assert stats["source"] == "grounded"
    log = (run.logs / "traces_pi1_phaseA.log").read_text()
    assert {"0", "1"} <= set(re.findall(r"\[(\d)/[23]\]: .* done in", log)), log


def test_train_logs_count_every_supervised_token_and_follow_the_schedule(small_run):
    from abscot.training.optimizer import lr_at

    recipe, rows = small_run.recipe, len(ShardStore(small_run.run.shards))
    for training in trainings(recipe, small_run.run):
        log = json.loads(training.train_log.read_text())
        steps, config = log["steps"], recipe.train
        assert [s["step"] for s in steps] == list(range(log["meta"]["num_steps"]))
        peak = log["meta"]["peak_lr"]
        assert all(
            s["lr"] == pytest.approx(lr_at(s["step"], len(steps), peak, config), rel=1e-12)
            for s in steps
        )
        assert all(
            np.isfinite([s["loss"], s["loss_z"], s["loss_y"], s["grad_norm"]]).all() for s in steps
        )
        assert all(s["supervised_tokens"] > 0 and s["tokens_per_s"] > 0 for s in steps)
        trained = rows - config.channel_rows
        assert sum(s["examples"] for s in steps) == training.epochs * trained
        assert [e["rows"] for e in log["channel"]] == [config.channel_rows] * len(log["channel"])
        assert bool(log["channel"]) == (training.phase.name == "A")


def test_results_count_tokens_from_ids(small_run):
    rows = [
        json.loads(line)
        for line in (small_run.run.results / "abstract_final_world.jsonl").read_text().splitlines()
    ]
    assert len(rows) == small_run.recipe.world.heldout and len({r["id"] for r in rows}) == len(rows)
    for row in rows:
        assert (
            row["n_abstract_tokens"] == len(row["trace_ids"])
            and row["n_reasoning_tokens"] >= row["n_abstract_tokens"]
        )
        assert row["n_total_tokens"] == row["n_reasoning_tokens"] + row["n_response_tokens"]
        assert row["correct"] in (0.0, 1.0) and {
            "problem",
            "gold",
            "response",
            "prediction",
        } <= set(row)


def test_every_model_loads_tied_and_differs_from_the_one_before(small_run):
    import transformers

    heads = []
    for name in ("base", "round1", "final"):
        directory = small_run.run.root / name
        files.verify(directory)
        lm = transformers.AutoModelForCausalLM.from_pretrained(directory)
        assert lm.config.tie_word_embeddings and lm.lm_head.weight is lm.model.embed_tokens.weight
        assert lm.dtype == torch.float32 and len(load_tokenizer(directory)) <= lm.config.vocab_size
        heads.append(lm.lm_head.weight.detach().clone())
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])
    names = [set(_tensor_names(small_run.run.root / name)) for name in ("base", "final")]
    assert names[0] == names[1]


def _tensor_names(directory):
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            yield from file.keys()


def test_a_baseline_trains_from_the_base(small_run):
    phase = "pause"
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train.py"), "--phase", phase, *small_run.overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    log = json.loads(small_run.run.train_log(phase).read_text())
    assert (log["steps"][0]["loss_z"] == 0) and log["steps"][0]["loss"] > 0
    files.verify(small_run.run.checkpoints(phase) / "export")


def test_the_channel_of_a_round_is_measured_and_the_ladder_takes_the_run_up(small_run):
    done = small_run.launch(
        "evaluate.py", "--model", "pi1_phaseA", "--set", "eval.channel_problems=10"
    )
    assert done.returncode == 0, done.stdout
    meta = json.loads((small_run.run.results / "channel_pi1_phaseA_world.meta.json").read_text())
    assert meta["problems"] == 10 and meta["round"] == 1 and 0 <= meta["accuracy"] <= 1
    plan = small_run.launch("ladder.py", "--dry-run")
    assert (
        plan.returncode == 0
        and "evaluate_pi1_phaseA  [done]" in plan.stdout
        and "evaluate_pause  [" in plan.stdout
    )
    # it asks more of a round's model than the run did
    assert "evaluate_final  [ready]" in plan.stdout and "train_pi2_phaseB  [done]" in plan.stdout
    for schedule in ("paper", "grounded"):
        beside = f"{small_run.run.root}-{schedule}: the {schedule} schedule; world, extend, prepare"
        assert f"{beside}, evaluate_base: linked from {small_run.run.root}" in plan.stdout


def test_train_alone_names_the_missing_input_and_its_command(tmp_path):
    done = launch("train.py", "--phase", "A", *overrides_of(tmp_path))
    assert (
        done.returncode == 2
        and "shards" in done.stdout
        and "launch/round.py --round 0" in done.stdout
    )
    assert not (tmp_path / "tiny-cpu").exists()


def test_a_killed_run_goes_on_from_the_last_finished_stage(small_run, tmp_path):
    """SIGKILL in the middle of a training stage: no process survives, and the rerun ends with the
    same weights.
    """
    run, overrides = _half_done_copy(small_run, tmp_path)
    command = [sys.executable, str(ROOT / "launch" / "round.py"), "--round", "2", *overrides]
    first = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    _wait_for(lambda: (run.checkpoints("pi2_phaseB")).is_dir(), 240)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    _wait_for(lambda: not _processes_of(run), 30)
    assert not files.is_done(run.root / "final")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "train_pi2_phaseA: done before" in done.stdout
    assert _weights(run.root / "final") == _weights(small_run.run.root / "final")


def _half_done_copy(small_run, tmp_path):
    """The run as it was before phase B of round 2 was trained."""
    import shutil

    overrides = overrides_of(tmp_path)
    run = Run.of(load_recipe(None, overrides[1::2]))
    shutil.copytree(small_run.run.root, run.root)
    run.config.unlink()
    run.config.write_text(
        (small_run.run.config).read_text().replace(str(small_run.recipe.run_root), str(tmp_path))
    )
    shutil.rmtree(run.root / "final")
    shutil.rmtree(run.checkpoints("pi2_phaseB"), ignore_errors=True)
    for path in run.results.glob("*final*"):
        path.unlink()
    return run, overrides


def _wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)


def _processes_of(run) -> list[int]:
    """Live processes whose command line names the run directory."""
    found = []
    for path in (p for p in os.listdir("/proc") if p.isdigit()):
        try:
            words = Path(f"/proc/{path}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run.config).encode() in words:
            found.append(int(path))
    return found


def _weights(directory) -> dict[str, str]:
    sums = json.loads((directory / files.DONE).read_text())["files"]
    return {name: value for name, value in sums.items() if name.endswith(".safetensors")}
