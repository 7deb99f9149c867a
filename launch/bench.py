"""Measures what the README claims: each benchmark with its baselines in the same run.

  python launch/bench.py channel       does the answer learn the CoT through the trace? one pass against two
  python launch/bench.py attention     every backend of this machine against dense, causal and the floor
  python launch/bench.py step          a whole training step against three other ways on the same rows
  python launch/bench.py gpu           kernels' tests, TFLOP/s and useful MFU on a CUDA GPU
  python launch/bench.py mask          the mask of one packed bin as a picture
"""

import argparse
import importlib
import json
import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from abscot import cli  # noqa: E402

BENCHMARKS = {  # name -> module with `run() -> dict`, which prints its tables on the way
    "channel": "abscot.bench_channel",
    "attention": "abscot.bench_attention",
    "step": "abscot.bench_step",
    "gpu": "abscot.bench_gpu",
    "mask": "abscot.bench_mask",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    result = importlib.import_module(BENCHMARKS[args.name]).run()
    if args.json:
        print(json.dumps(result))


cli.run(main)
