"""A tiny run that is ready to train on real DeepSpeed ranks, and what to do with it."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

from abscot.common import files
from abscot.common.process import free_port
from abscot.generation.trace_jobs import generate, open_job
from abscot.pipeline.stages import train_stage
from abscot.recipe.load import dump
from abscot.recipe.run import Run
from abscot.recipe.schema_train import LoraConfig
from kit.tiny_run import make_tiny_run, training_of

TAG = "pi1_phaseA"


def make(
    root: Path,
    ranks: int = 2,
    dtype: str = "bf16",
    lora: LoraConfig | None = None,
    data: dict | None = None,
    **train,
):
    """(recipe, run) with phase A's random traces; five steps per epoch. data: make_tiny_run's
    keywords.
    """
    root.mkdir(parents=True)
    recipe, run, _ = make_tiny_run(root, **(data or {}))
    if dtype == "bf16":
        store = run.base / "model.safetensors"
        save_file(
            {k: v.bfloat16() for k, v in load_file(store).items()}, store, metadata={"format": "pt"}
        )
        files.seal(run.base)
    settings = {
        "deepspeed": "ds_configs/cpu.json",
        "num_gpus": ranks,
        "capacity_tokens": 256,
        "global_batch_examples": 8,
        "lr": 3e-3,
        "checkpoint_every_minutes": None,
        "deterministic": True,  # what is compared here, is compared bit for bit
        **train,
    }
    recipe = dataclasses.replace(
        recipe,
        lora=lora,
        model=dataclasses.replace(recipe.model, dtype=dtype),
        train=dataclasses.replace(recipe.train, **settings),
        data=dataclasses.replace(recipe.data, decontaminate=False),
    )
    run.config.write_text(dump(recipe))
    generate(open_job(training_of(recipe, run, 1, "A")))
    return recipe, run


def on_ranks(recipe, ranks: int, **train):
    return dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, num_gpus=ranks, **train)
    )


def start(recipe, run: Run) -> subprocess.Popen:
    """Phase A of round 1, in a session of its own."""
    run.config.write_text(dump(recipe))
    stage = train_stage(training_of(recipe, run, 1, "A"))
    command = stage.launch.command(run.config, free_port())
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process) -> tuple[int, str]:
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def trained(root: Path, **settings):
    """(recipe, run) of a finished phase A."""
    recipe, run = make(root, **settings)
    code, output = finish(start(recipe, run))
    assert code == 0, output
    return recipe, run


def steps_of(run: Run) -> list[dict]:
    return json.loads(run.train_log(TAG).read_text())["steps"]


def channel_of(run: Run) -> list[dict]:
    return json.loads(run.train_log(TAG).read_text())["channel"]


def weights(run: Run) -> dict:
    return load_file(run.checkpoints(TAG) / "export" / "model-00001.safetensors")


def saved_step(run: Run) -> int:
    """Step of the newest finished checkpoint, 0 without one."""
    return max(
        (
            int(path.parent.name.removeprefix("step_"))
            for path in run.checkpoints(TAG).glob("step_*/DONE")
        ),
        default=0,
    )


def wait_for(condition, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def ranks_of(run: Run) -> list[int]:
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


def ask_to_stop(run: Run) -> None:
    for pid in ranks_of(run):
        os.kill(pid, signal.SIGTERM)


def reload_gap(run: Run, export: Path | None = None) -> float:
    """Largest difference between the live engine's recorded surprisals and those of the exported
    model (default: the last), reloaded.
    """
    import torch
    import transformers

    export = export or run.checkpoints(TAG) / "export"
    probe = files.read_done(export)["probe"]
    lm = transformers.AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    tokens = torch.tensor(probe["tokens"])
    with torch.no_grad():
        logits = lm(tokens[None]).logits[0]
    found = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")[
        -len(probe["surprisals"]) :
    ]
    return float((found - torch.tensor(probe["surprisals"])).abs().max())
