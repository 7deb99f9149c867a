"""Grounded traces whose commands are killed again and again: the same codebook, the same traces.

  python tests/drills/grounding_drill.py --kills 20 --of 1 2 3 [--dir DIR]     half an hour

The stages launch/codebook.py and launch/traces.py of a tiny run, once undisturbed and once killed
with SIGKILL, with all their shards: while they start, between two chunks and in one. Ends with one
line of JSON; exit code 1 where a byte differs.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":  # a script: the kit lies beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from abscot.common import files
from abscot.generation.trace_records import TRACES
from abscot.recipe.load import ROOT, dump
from kit.tiny_run import make_tiny_run

ROWS, CHUNK_TOKENS = 600, 400  # four rows with their CoTs


def make(root: Path):
    """(recipe, run) with base/ and shards/."""
    root.mkdir(parents=True, exist_ok=True)
    recipe, run, _ = make_tiny_run(root, ROWS)
    inference = dataclasses.replace(recipe.inference, chunk_tokens=CHUNK_TOKENS)
    recipe = dataclasses.replace(recipe, schedule="grounded", codebook_size=8, inference=inference)
    run.config.write_text(dump(recipe))
    return recipe, run


def start(run, script: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "launch" / script), "--recipe", str(run.config)]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


CODEBOOK = ("codebook.py",)


def traces(of: int) -> tuple[str, ...]:
    return ("traces.py", "--round", "1", "--phase", "A", "--of", str(of))


def done(run, *stage: str) -> None:
    process = start(run, *stage)
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(output)


def finish(run, of: int) -> tuple[str, bytes]:
    """Both stages to their end: what they have made."""
    done(run, *CODEBOOK)
    done(run, *traces(of))
    made = run.traces("pi1_phaseA")
    left = [p.name for p in run.root.glob(".*.partial")]
    left += [p.name for p in made.parent.iterdir() if p.name != made.name]
    if set(left) - {f".{made.name}.lock"}:
        raise RuntimeError(f"left over: {left}")
    return files.fingerprint(run.codebook), (made / TRACES).read_bytes()


def disturb(run, of: int, moment: str, draw: random.Random) -> bool:
    """Starts the stage and kills it at the moment; whether it was still at work then."""
    parts = run.traces("pi1_phaseA").with_name(".pi1_phaseA.parts")
    process = start(run, *(CODEBOOK if moment == "codebook" else traces(of)))
    if moment == "chunks":
        goal = chunks(parts) + draw.randint(1, 8)
        while chunks(parts) < goal and process.poll() is None:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
    else:
        until = time.monotonic() + draw.uniform(0, 12)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
    at_work = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return at_work


def chunks(parts: Path) -> int:
    return len(list(parts.glob("chunk_*.arrow")))


def drill(root: Path, of: int, kills: int, seed: int, expected: tuple[str, bytes]) -> dict:
    """What became of a run that was killed so often, beside what an undisturbed one made."""
    draw = random.Random(f"{seed} {of}")
    _, run = make(root)
    moments = ["codebook"] * (kills // 5) + ["start"] * (kills // 5)
    moments += ["chunks"] * (kills - len(moments))
    hits = Counter()
    for moment in moments:
        if moment != "codebook" and not files.is_done(run.codebook):
            done(run, *CODEBOOK)
        while not disturb(run, of, moment, draw):  # it was too late
            shutil.rmtree(run.codebook if moment == "codebook" else run.traces("pi1_phaseA"))
        hits[moment] += 1
    return {"of": of, "kills": hits.total(), **hits, "the same": finish(run, of) == expected}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--of", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="kept; default: a temporary directory")
    args = parser.parse_args()
    root = args.dir or Path(tempfile.mkdtemp(prefix="abscot-grounding-"))
    expected = finish(make(root / "whole")[1], 1)
    results = []
    for of in args.of:
        results.append(drill(root / f"of{of}", of, args.kills, args.seed, expected))
        print(results[-1], flush=True)
    print(json.dumps(results))
    return 0 if all(result["the same"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
