"""Training on real DeepSpeed ranks: what must not depend on ranks, kills or adapters, and what must stop it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import make_tiny_run

from abscot import paths
from abscot.config import LoraConfig, dump
from abscot.paths import Run
from abscot.phases import PHASES
from abscot.rounds import train_stage

pytestmark = pytest.mark.engine


def make(root: Path, ranks: int = 2, dtype: str = "bf16", lora: LoraConfig | None = None, **train):
    """A tiny run with phase A's random traces, ready to train."""
    root.mkdir(parents=True)
    recipe, run, _ = make_tiny_run(root)
    if dtype == "bf16":
        store = run.base / "model.safetensors"
        save_file({k: v.bfloat16() for k, v in load_file(store).items()}, store, metadata={"format": "pt"})
        paths.seal(run.base)
    settings = {
        "deepspeed": "ds_configs/cpu.json", "num_gpus": ranks, "capacity_tokens": 256, "global_batch_examples": 8,
        "lr": 3e-3, "checkpoint_every_minutes": None, **train,
    }
    recipe = dataclasses.replace(
        recipe, lora=lora, model=dataclasses.replace(recipe.model, dtype=dtype),
        train=dataclasses.replace(recipe.train, **settings), data=dataclasses.replace(recipe.data, decontaminate=False),
    )
    run.config.write_text(dump(recipe))
    done = subprocess.run([sys.executable, "launch/traces.py", "--recipe", run.config, "--round", "1", "--phase", "A"])
    assert done.returncode == 0
    return recipe, run


def start(recipe, run: Run) -> subprocess.Popen:
    command = train_stage(recipe, run, PHASES["A"], 1).command(run.config, _port())
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(process) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def trained(root: Path, **settings):
    """(run, steps of the log) of a finished phase A."""
    recipe, run = make(root, **settings)
    code, output = finish(start(recipe, run))
    assert code == 0, output
    return run, steps_of(run)


def steps_of(run: Run) -> list[dict]:
    return json.loads(run.train_log("pi1_phaseA").read_text())["steps"]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints("pi1_phaseA") / "export" / "model-00001.safetensors")


def _port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("two") / "run", dtype="fp32")


def test_one_rank_two_ranks_and_accumulation_take_the_same_steps(two_ranks, tmp_path):
    """fp32, uneven supervised tokens, bins that do not divide evenly: losses and gradients agree; rows are the same."""
    _, two = two_ranks
    _, one = trained(tmp_path / "one", ranks=1, dtype="fp32")
    for a, b in zip(two, one, strict=True):
        assert (a["rows_digest"], a["supervised_tokens"], a["lr"]) == (b["rows_digest"], b["supervised_tokens"], b["lr"])
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_a_stopped_run_resumes_bit_identically(tmp_path):
    """SIGTERM saves and asks to be requeued; a SIGKILL later costs the steps since the last checkpoint, nothing else."""
    whole, steps = trained(tmp_path / "whole", epochs=4)
    recipe, run = make(tmp_path / "killed", epochs=4, checkpoint_every_steps=3)
    folder = run.checkpoints("pi1_phaseA")
    process = start(recipe, run)
    _wait_for(lambda: list(folder.glob("step_*/DONE")))
    for pid in _ranks_of(run):
        os.kill(pid, signal.SIGTERM)
    code, output = finish(process)
    assert "asked to stop, saved at step" in output and not paths.is_done(folder / "export"), output
    saved = sorted(folder.glob("step_*/DONE"))[-1]
    process = start(recipe, run)
    _wait_for(lambda: sorted(folder.glob("step_*/DONE"))[-1] != saved)
    for pid in _ranks_of(run):
        os.kill(pid, signal.SIGKILL)
    assert finish(process)[0] != 0
    code, output = finish(start(recipe, run))
    assert code == 0, output
    for a, b in zip(steps, steps_of(run), strict=True):
        assert {k: a[k] for k in ("step", "loss", "grad_norm", "rows_digest")} == {
            k: b[k] for k in ("step", "loss", "grad_norm", "rows_digest")
        }
    ours, theirs = weights(run), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not list(folder.glob("step_*")), "checkpoints of a finished phase are removed"


@pytest.mark.parametrize("embeddings", ["new_rows", "full"])
def test_lora_exports_a_merged_tied_model_and_an_adapter(tmp_path, embeddings):
    import peft
    import transformers

    recipe, run = make(tmp_path / "run", dtype="fp32", lora=LoraConfig(r=4, alpha=8, embeddings=embeddings))
    code, output = finish(start(recipe, run))
    assert code == 0, output
    base = load_file(run.base / "model.safetensors")
    merged = transformers.AutoModelForCausalLM.from_pretrained(run.checkpoints("pi1_phaseA") / "export")
    assert merged.config.tie_word_embeddings and merged.lm_head.weight is merged.model.embed_tokens.weight
    changed = (merged.model.embed_tokens.weight.detach() != base["model.embed_tokens.weight"]).any(1).nonzero().flatten()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.base)
    first = tokenizer.convert_tokens_to_ids("<TOKEN_A>")
    assert len(changed) and (embeddings == "full" or set(changed.tolist()) <= set(range(first, first + 66)))
    adapted = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(run.base), run.adapter("pi1_phaseA")
    )
    ids = torch.arange(40)[None]
    with torch.no_grad():
        ours, theirs = merged(ids).logits.float(), adapted(ids).logits.float()
        plain = transformers.AutoModelForCausalLM.from_pretrained(run.base)(ids).logits.float()
    assert (ours - theirs).abs().max() < 1e-4 < 0.1 < (ours - plain).abs().max()


def test_a_loss_that_is_not_finite_ends_all_ranks_before_anything_is_saved(tmp_path):
    recipe, run = make(tmp_path / "run")
    model = next(run.base.glob("*.safetensors"))
    tensors = load_file(model)
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, model, metadata={"format": "pt"})
    code, output = finish(start(recipe, run))
    assert code != 0 and "step 0: loss is nan" in output and "row/" in output
    assert not list(run.checkpoints("pi1_phaseA").glob("step_*")) and not _ranks_of(run)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    from abscot import checkpoint
    from abscot.checkpoint import TrainState
    from abscot.config import UserError

    for step in (3, 6):
        with paths.publish(tmp_path / f"step_{step:07}", dataclasses.asdict(TrainState(step, 0, 9, "plan", 2))) as temp:
            (temp / "zero").write_bytes(b"state")
    assert checkpoint.newest(tmp_path, "plan", 2).name == "step_0000006"
    with pytest.raises(UserError, match="2 ranks, this is 4"):
        checkpoint.newest(tmp_path, "plan", 4)
    with pytest.raises(UserError, match="other data or batch settings"):
        checkpoint.newest(tmp_path, "other", 2)
    (tmp_path / "step_0000006" / "zero").write_bytes(b"stats")
    with pytest.raises(UserError, match="step_0000006/zero: checksum.*step_0000003"):
        checkpoint.newest(tmp_path, "plan", 2)


def _wait_for(condition, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def _ranks_of(run: Run) -> list[int]:
    """Live training ranks of this run."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run.config).encode() in words and any(w.startswith(b"--local_rank") for w in words):
            found.append(int(pid))
    return found
