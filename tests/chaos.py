"""Training that is killed again and again: nothing is lost, nothing is done twice, and not a bit
differs.

  python tests/chaos.py --kills 20 --seed 0 [--dir DIR]      about ten minutes on two cores

Two ZeRO-3 ranks train a tiny phase A, once undisturbed and once killed with SIGKILL at random
moments: in the start, between steps, in a save, in an export on its way (every third step) and in
the last. Ends with one line of JSON; exit code 1 where anything differs.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from abscot.model import checkpoint_dirs
from abscot.training.audit import audit
from kit.tiny_run import training_of
from kit.training_run import (
    TAG,
    ask_to_stop,
    channel_of,
    finish,
    make,
    ranks_of,
    saved_step,
    start,
    steps_of,
    trained,
    wait_for,
    weights,
)

SAME = (
    "step",
    "epoch",
    "loss",
    "loss_z",
    "loss_y",
    "lr",
    "grad_norm",
    "supervised_tokens",
    "tokens",
    "examples",
    "rows_digest",
)


def disturb(recipe, run, moment: str, draw: random.Random) -> bool:
    """Starts the phase and kills it at the moment; `asked` is a SIGTERM instead. Whether it was
    still at work then.
    """
    process, before, folder = start(recipe, run), saved_step(run), run.checkpoints(TAG)
    goal = before + draw.randint(1, 3)

    def reached() -> bool:
        if moment == "before a step":
            return (folder / "deepspeed.json").exists()
        if moment == "save":
            return saved_step(run) > before and any(folder.glob(".step_*.partial"))
        if moment == "export":
            return any(folder.glob(".export.partial")) or (folder / "export").exists()
        if moment == "on the way":
            return any((run.root / "intermediate").glob(".*.partial"))
        return saved_step(run) >= goal

    if moment == "start":
        time.sleep(draw.uniform(0, 12))
    else:
        wait_for(lambda: reached() or process.poll() is not None)
        time.sleep(draw.uniform(0, 0.02))
    if moment == "asked":
        ask_to_stop(run)
        code, output = finish(process)
        return "asked to stop, saved at step" in output
    at_work = process.poll() is None
    for pid in ranks_of(run):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return at_work


def shared_memory() -> set[str]:
    """What ranks on a CPU keep in memory by name: it outlives a rank that is killed."""
    return {name for name in os.listdir("/dev/shm") if "deepspeed" in name}


def chaos(root: Path, moments: list[str], seed: int, reference, **settings) -> dict:
    """What became of a run that was disturbed at these moments, beside `reference`, the undisturbed
    run of as many epochs. settings: of both, as `make` takes them.
    """
    draw, shared = random.Random(seed), shared_memory()
    recipe, run = make(
        root,
        epochs=reference[0].train.epochs,
        checkpoint_every_steps=1,
        export_every_steps=3,
        **settings,
    )
    hits = sum(disturb(recipe, run, moment, draw) for moment in moments)
    code, output = finish(start(recipe, run))
    if code:
        raise RuntimeError(output)
    finding = next(f for f in audit(recipe, run) if f.tag == TAG)
    ours, theirs = steps_of(run), steps_of(reference[1])
    same_steps = [[step[key] for key in SAME] for step in ours] == [
        [step[key] for key in SAME] for step in theirs
    ]
    same_channel = channel_of(run) == channel_of(reference[1])
    mine, other = weights(run), weights(reference[1])
    same_weights = mine.keys() == other.keys() and all(
        torch.equal(mine[name], other[name]) for name in other
    )
    times = Counter(step["step"] for step in ours)
    return {
        "kills": hits,
        "asked_for": len(moments),
        "steps": len(theirs),
        "trained": finding.trained,
        "lost": sum(step["examples"] for step in theirs if not times[step["step"]]),
        "duplicated": sum(
            step["examples"] * (times[step["step"]] - 1)
            for step in theirs
            if times[step["step"]] > 1
        ),
        "bit_identical": same_steps and same_channel and same_weights,
        "audit": list(finding.faults) or "every row exactly once per epoch",
        "exported": training_of(recipe, run, 1, "A").exported_steps(),
        "curve": curve_steps(run) == [step["step"] for step in theirs],
        "left_over": sorted(
            {p.name for p in checkpoint_dirs.superfluous(run.checkpoints(TAG))}
            | {p.name for p in (run.root / "intermediate").glob(".*")}
            | (shared_memory() - shared)
        ),
    }


def curve_steps(run) -> list[int]:
    """Steps that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [
        event.step
        for event in EventAccumulator(str(run.tensorboard / TAG)).Reload().Scalars("train/loss")
    ]


def moments_of(kills: int, seed: int) -> list[str]:
    """An export is the end of the phase: the kills in it come last."""
    draw = random.Random(seed)
    exports = max(1, kills // 7)
    return [
        draw.choice(("start", "step", "step", "save", "on the way")) for _ in range(kills - exports)
    ] + ["export"] * exports


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="kept; default: a temporary directory")
    args = parser.parse_args()
    root = args.dir or Path(tempfile.mkdtemp(prefix="abscot-chaos-"))
    reference = trained(root / "whole", epochs=2 + args.kills)
    result = chaos(root / "killed", moments_of(args.kills, args.seed), args.seed, reference)
    print(json.dumps(result))
    exact = result["bit_identical"] and not (
        result["lost"] or result["duplicated"] or result["left_over"]
    )
    return 0 if exact and result["kills"] == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
