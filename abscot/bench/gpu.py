"""The first hour on a GPU: the product itself, measured in parts of at most 8 minutes each.

  python launch/bench.py gpu                       all parts, one after the other
  python launch/bench.py gpu --part kernels        attention and loss: right? how fast? and matmul
  python launch/bench.py gpu --part step           whole steps of the model, lever by lever
  python launch/bench.py gpu --part trainer        launch/train.py: ZeRO, LoRA, stop, resume, export
  python launch/bench.py gpu --part traces         a chunk of traces at prompts of 20k tokens

Each part adds to one file (--out), which launch/plan.py --scorecard reads, so that short slots on a
GPU make one scorecard. The same command goes on with what a part had no time for; --again measures
all of it anew.
"""

import argparse
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from abscot.bench.gpu_command import json_of
from abscot.bench.gpu_part import Part, one_line
from abscot.bench.gpu_scorecard import PARTS, Scorecard, text
from abscot.common.arguments import whole_number
from abscot.common.errors import UserError
from abscot.common.process import PARENT, die_with_parent
from abscot.recipe.load import ROOT

MINUTES = 8
# Of a part's time: for ending what its last case has started.
RESERVE_S = 10
FOLLOWED_S = 2  # until what a killed part has started has seen that (process.py)
MACHINE_LIMIT_S = 120
NEEDS = {
    "kernels": ("torch",),
    "step": ("torch", "transformers"),
    "trainer": ("torch", "transformers", "peft", "deepspeed"),
    "traces": ("torch", "transformers", "peft", "deepspeed", "vllm"),
}


def run(options: Sequence[str] = ()) -> dict:
    """Prints the scorecard and returns it. Raises UserError without a CUDA GPU."""
    args = _parser().parse_args(list(options))
    name = "bench-gpu-tiny.json" if args.tiny else "bench-gpu.json"
    card = Scorecard((args.out or ROOT / "runs" / name).resolve())
    card.read()  # refused now, and not after the first part
    if not (torch.cuda.is_available() or args.tiny):
        raise UserError(
            "bench.py gpu: no CUDA GPU here; run it on a machine with one, e.g. srun --gpus=1, or "
            "the flow alone with --tiny"
        )
    machine = json_of(["abscot.bench.gpu_machine"], card.logs / "machine.log", MACHINE_LIMIT_S)
    for line in machine["unpinned"]:
        print(f"{line}: what does not work may be due to that", flush=True)
    for part in [args.part] if args.part else PARTS:
        _run_part(card, part, machine, args)
    tree = card.read()
    print(f"\n{text(tree)}\n\n{card.path}")
    return tree


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.py gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the scorecard (default: runs/bench-gpu.json)"
    )
    parser.add_argument(
        "--minutes", type=whole_number(1, 600), default=MINUTES, help="a part's, at most"
    )
    parser.add_argument("--again", action="store_true", help="measure what is known anew")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny shapes, on a CPU too: a test of the flow"
    )
    return parser


def _run_part(card: Scorecard, name: str, machine: dict, args: argparse.Namespace) -> None:
    """Runs a part in a process of its own; what breaks it is in the scorecard."""
    print(f"\n{name}: at most {args.minutes} minutes", flush=True)
    known = {} if args.again else known_cases(card.read().get(name, {}), machine, args.tiny)
    card.begin(name, machine=machine, tiny=args.tiny, cases=known, left_out={})
    missing = [n for n in NEEDS[name] if importlib.util.find_spec(n) is None]
    if missing:
        why = f"{' and '.join(missing)} not installed; bash launch/setup.sh installs all"
        card.put(name, skipped=why)
        print(f"  skipped: {why}", flush=True)
        return
    began_s = time.monotonic()
    ends_at = time.time() + 60 * args.minutes - RESERVE_S
    command = [sys.executable, "-m", "abscot.bench.gpu", name, str(card.path), str(ends_at)]
    with _work_of(card, name):
        why = _ended_badly([*command, *["--tiny"] * args.tiny], 60 * args.minutes)
    if why:
        why = card.read()[name].get("error") or why
        card.put(name, error=why)
        print(f"  BROKEN: {why}", flush=True)
    card.put(name, seconds=round(time.monotonic() - began_s, 1))


def known_cases(part: dict, machine: dict, tiny: bool) -> dict[str, dict]:
    """The cases of a part that need not be measured again: what went well on such a machine."""
    before, keys = part.get("machine", {}), ("device", "gpus", "packages")
    if part.get("tiny") != tiny or any(before.get(key) != machine[key] for key in keys):
        return {}
    return {name: found for name, found in part.get("cases", {}).items() if "error" not in found}


@contextmanager
def _work_of(card: Scorecard, name: str) -> Iterator[None]:
    """Makes the part's work directory; gone behind it, and what a kill has left before it."""
    shutil.rmtree(card.work(name), ignore_errors=True)
    card.work(name).mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(card.work(name), ignore_errors=True)
        with suppress(OSError):  # another part works
            card.work(name).parent.rmdir()


def _ended_badly(command: list[str], limit_s: float) -> str | None:
    """Runs a part's process; in words what was wrong with its end, None where nothing was."""
    environ = {**os.environ, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    process, code = subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True), None
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"ended after {limit_s:.0f} s, its time"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if code is None:
            time.sleep(FOLLOWED_S)
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}; what it said stands above" if code else None


def _measure(name: str, path: str, ends_at: str, *tiny: str) -> None:
    """The process of a part."""
    card = Scorecard(Path(path))
    entry = card.read()[name]
    part = Part(name, card, float(ends_at), entry["machine"], bool(tiny), set(entry["cases"]))
    try:
        importlib.import_module(f"abscot.bench.gpu_{name}").measure(part)
    except Exception as error:  # of no case: a package that is too old, a disk that is full
        card.put(name, error=one_line(error))
        raise


if __name__ == "__main__":
    die_with_parent()
    _measure(*sys.argv[1:])
