"""`bench.py peers`: a training step of ours beside one of TRL's SFTTrainer, on this CPU.

The same rows in the same step, the same weights, dtype, threads and DeepSpeed file (ZeRO-1, AdamW
with fp32 masters), gradient checkpointing on both sides. Ours is the product's trainer on one rank.
TRL packs by itself (best-fit decreasing, no padding) and has loss on the completion alone. Each is
a process of its own; they step in turns, so that a busy machine slows both alike. The first step is
not timed: its losses are compared.

On a CPU, TRL would attend by a dense mask over the whole bin and score every position. Neither is
what it does on a GPU, so it gets both here: a causal call a document, and an LM head that looks at
supervised positions alone. --as-is adds TRL without them.
"""

import argparse
import configparser
import contextlib
import importlib.metadata
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from abscot.bench import tools
from abscot.bench.step import VOCAB, small_qwen3
from abscot.bench.synthetic_rows import write_store, write_traces
from abscot.bench.turns import Side
from abscot.common import hardware
from abscot.common.arguments import whole_number
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.method.lineage import training_of
from abscot.method.phases import PHASES
from abscot.recipe.load import ROOT, default_recipe
from abscot.recipe.run import Run, claim
from abscot.recipe.schema import Recipe

PHASES_COMPARED = ("sft_no_cot", "B", "A")
CAPACITY_TOKENS = 4096
# Tokens of prompt, CoT and answer: one bin without the CoT, two with it.
ROWS = ((150, 700, 550), (300, 1400, 800), (250, 1100, 650), (200, 700, 700))
OURS, TRL, AS_IS = "ours", "TRL", "TRL as is"
MODULES = {
    OURS: "abscot.bench.peers_ours",
    TRL: "abscot.bench.peers_trl",
    AS_IS: "abscot.bench.peers_trl",
}
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


def run(argv: list[str] = ()) -> dict:
    """Keys: over_trl_4k (ours / TRL's tokens a second, the lower of the phases without a
    bottleneck), memory_ratio_trl_4k (ours / TRL's peak, the higher of them), loss_gap (the largest
    of the first steps, in nats a supervised token), phase_a_over_trl_4k; each side's numbers by
    phase. Raises UserError where TRL is not there.
    """
    parser = argparse.ArgumentParser(
        prog="bench.py peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=whole_number(1), default=2, help="timed steps")
    parser.add_argument("--as-is", action="store_true", help="TRL as a CPU gets it, too")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], help="default: bf16 in hardware")
    args = parser.parse_args(argv)
    trl = trl_version()
    os.environ |= ENVIRONMENT  # of the sides, too
    dtype = args.dtype or ("bf16" if hardware.cpu_has_bf16() else "fp32")
    with tempfile.TemporaryDirectory() as temporary:
        recipe = recipe_of(Path(temporary) / "run", 1 + args.repeats, dtype)
        write_run(recipe)
        sides = [OURS, TRL, *[AS_IS] * args.as_is]
        measured = {name: measure(recipe, name, sides) for name in PHASES_COMPARED}
    print(_table(measured, dtype))
    return {**results(measured), "trl": trl, "dtype": dtype, **tools.environment()}


def trl_version() -> str:
    """That of the bench extra. Raises UserError for another and for none: how it is made its best
    belongs to one version.
    """
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pin = setup["options.extras_require"]["bench"].strip()
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if f"trl=={found}" != pin:
        raise UserError(
            f"peers: expected {pin}, found {found or 'none'}; install it beside the project, "
            f"without its requirements: .venv/bin/pip install --no-deps --target .peers {pin}, "
            "then: PYTHONPATH=.peers python launch/bench.py peers"
        )
    return found


def recipe_of(root: Path, steps: int, dtype: str) -> Recipe:
    """All rows in every step; the run lies in `root`."""
    return default_recipe(
        [
            f"run_root={root.parent}",
            f"name={root.name}",
            f"model.dtype={dtype}",
            "train.deepspeed=ds_configs/zero1.json",  # one rank has nothing to shard
            f"train.capacity_tokens={CAPACITY_TOKENS}",
            f"train.global_batch_examples={len(ROWS)}",
            f"train.phase_epochs={{{', '.join(f'{name}: {steps}' for name in PHASES_COMPARED)}}}",
            "train.lr_schedule=constant",
            "train.warmup_ratio=0",
        ]
    )


def write_run(recipe: Recipe) -> None:
    """What trainings start from: shards, traces, a small Qwen3 with the real vocabulary."""
    run = claim(recipe)
    store = write_store(run, np.array(ROWS), VOCAB)
    for training in (training_of(recipe, run, name, 1) for name in PHASES_COMPARED):
        if training.reads_traces:
            write_traces(training, store)
    small_qwen3().save_pretrained(run.base)


def measure(recipe: Recipe, phase: str, names: list[str]) -> dict[str, dict]:
    """`summary` of each side's steps, by its name."""
    run = Run.of(recipe)
    steps = training_of(recipe, run, phase, 1).epochs
    with contextlib.ExitStack() as stack:
        sides = {
            name: stack.enter_context(Side(MODULES[name], str(run.root), phase, name))
            for name in names
        }
        turns = [{name: side.step() for name, side in sides.items()} for _ in range(steps)]
    measured = {name: summary([turn[name] for turn in turns]) for name in names}
    for name, m in measured.items():
        log(f"{phase}, {name}: {m['tokens_per_s']:,.0f} tokens/s, loss {m['loss']:.5f}")
    assert len({m["tokens"] for m in measured.values()}) == 1, measured  # of the same rows
    return measured


def summary(steps: list[dict]) -> dict:
    """Medians of the timed steps, the loss of the first, the peak of all."""
    seconds, cpu_seconds = (
        statistics.median(step[key] for step in steps[1:]) for key in ("seconds", "cpu_seconds")
    )
    first, *_, last = steps
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens": first["tokens"],
        "tokens_per_s": first["tokens"] / seconds,
        "bins": first["bins"],
        "loss": first["loss"],
        "peak_bytes": last["peak_bytes"],
    }


def results(measured: dict[str, dict[str, dict]]) -> dict:
    """What `run` returns of the measurements by phase and side."""
    over = {name: _over(sides, TRL) for name, sides in measured.items()}
    same = [name for name in measured if not PHASES[name].hidden]  # the same computation
    (bottleneck,) = set(measured) - set(same)
    peaks = {n: {s: m["peak_bytes"] for s, m in measured[n].items()} for n in same}
    losses = {n: {s: m["loss"] for s, m in measured[n].items()} for n in same}
    found = {
        "over_trl_4k": min(over[name] for name in same),
        "memory_ratio_trl_4k": max(peak[OURS] / peak[TRL] for peak in peaks.values()),
        "loss_gap": max(abs(loss[OURS] - loss[TRL]) for loss in losses.values()),
        "phase_a_over_trl_4k": over[bottleneck],
    }
    as_is = [_over(sides, AS_IS) for sides in measured.values() if AS_IS in sides]
    if as_is:
        found["over_trl_as_is_4k"] = min(as_is)
    return {**found, "sides": measured}


def _over(sides: dict[str, dict], other: str) -> float:
    return sides[OURS]["tokens_per_s"] / sides[other]["tokens_per_s"]


def _table(measured: dict[str, dict[str, dict]], dtype: str) -> str:
    rows = [
        [
            f"{phase}: {name}",
            m["bins"],
            m["seconds"],
            m["cpu_seconds"],
            m["tokens_per_s"],
            _over(sides, name),
            m["peak_bytes"] / 2**30,
            f"{m['loss']:.5f}",
        ]
        for phase, sides in measured.items()
        for name, m in sides.items()
    ]
    title = f"\n{len(ROWS)} rows in bins of {CAPACITY_TOKENS} tokens, {dtype}, one step"
    columns = "bins|seconds|CPU seconds|tokens/s|ours is faster x|peak GiB|first loss"
    return tools.table(title, ["", *columns.split("|")], rows)
