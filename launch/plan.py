"""What a recipe will do and need: rows, steps, balance, memory, hours, disk, advice. Nothing is
run.

  python launch/plan.py                                 the tiny recipe
  python launch/plan.py --recipe launch/recipes/qwen3-4b-full-600k.yaml --world 64
  python launch/plan.py --recipe R --lengths FILE       a line per row: prompt,cot,answer tokens

Lengths come from the run's shards; before there are any, from --lengths, or they are assumed.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common import hardware
from abscot.common.arguments import whole_number
from abscot.common.errors import UserError
from abscot.pipeline.preflight import preflight
from abscot.pipeline.preflight_text import render


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    parser.add_argument(
        "--world",
        type=whole_number(1),
        metavar="N",
        help="GPUs that train (default: train.num_gpus, or this machine's)",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="share of the GPU's peak FLOPs that training reaches (default 0.4)",
    )
    parser.add_argument(
        "--lengths",
        type=Path,
        metavar="FILE",
        help="token counts instead of the run's shards",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    args = parser.parse_args()
    recipe = cli.recipe_of(args)
    world = recipe.train.num_gpus or hardware.local_gpus() if args.world is None else args.world
    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu {args.mfu}: expected a share above 0, at most 1")
    report = preflight(recipe, world, args.mfu, args.lengths)
    print(json.dumps(report, indent=1) if args.json else render(report))


cli.run(main)
