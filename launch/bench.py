"""Measures what the README claims: each benchmark with its baselines in the same run.

  python launch/bench.py channel     does the answer learn the CoT through the trace?
  python launch/bench.py attention   every backend of this machine against dense, causal, the floor
  python launch/bench.py step        a whole training step against three other ways, the same rows
  python launch/bench.py peers       a training step beside TRL's SFTTrainer, on this CPU
  python launch/bench.py gpu         the first hour on a GPU: kernels, steps, trainer, traces
  python launch/bench.py plan        time, balance and fill of a plan of 600k rows, beside TRL's
  python launch/bench.py loader      tokens/s, memory, resume of the batches, beside two libraries
  python launch/bench.py traces      constrained traces per second, beside vLLM and transformers
  python launch/bench.py ablations   a grounded run of the world, each time with one thing changed
  python launch/bench.py grounding   tokens/s of grounded traces, beside plain forwards
  python launch/bench.py mask        the mask of one packed bin as a picture

plan, loader, traces, grounding, gpu and peers take options: python launch/bench.py plan --help. TRL
and mosaicml-streaming are no part of the project; where they are not installed they are left out,
and peers says how. They want other versions of what the project pins, so put them beside it,
without their requirements:
  .venv/bin/pip install --no-deps --target .peers trl==1.16.0 mosaicml-streaming catalogue \\
      brotli python-snappy cramjam zstd xxhash
  PYTHONPATH=.peers python launch/bench.py loader
"""

import argparse
import importlib
import inspect
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

LACKS = "{} is not installed for {}; bash launch/setup.sh makes .venv with all that is needed"
try:
    from abscot import cli
except ModuleNotFoundError as missing:  # the python of a bare machine
    print(f"error: {LACKS.format(missing.name, sys.executable)}", file=sys.stderr)
    sys.exit(2)

from abscot.common.errors import UserError

BENCHMARKS = {  # name -> module with `run() -> dict`, which prints its tables on the way
    "channel": "abscot.bench.channel",
    "attention": "abscot.bench.attention",
    "step": "abscot.bench.step",
    "peers": "abscot.bench.peers",
    "gpu": "abscot.bench.gpu",
    "plan": "abscot.bench.plan",
    "loader": "abscot.bench.loader",
    "traces": "abscot.bench.traces",
    "ablations": "abscot.bench.ablations",
    "grounding": "abscot.bench.grounding",
    "mask": "abscot.bench.mask",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, help="--json ends with one line of JSON"
    )
    args = parser.parse_args()
    options = [word for word in args.options if word != "--json"]
    try:
        run = importlib.import_module(BENCHMARKS[args.name]).run
    except ModuleNotFoundError as missing:
        raise UserError(LACKS.format(missing.name, sys.executable)) from None
    if options and not inspect.signature(run).parameters:
        parser.error(f"{args.name} takes no options of its own: {' '.join(options)}")
    result = run(options) if options else run()
    if "--json" in args.options:
        print(json.dumps({"benchmark": args.name, **result}))


cli.run(main)
