"""What a recipe will do and need: rows, steps, balance, memory, hours, disk, advice. Nothing is
run.

  python launch/plan.py                                 the tiny recipe
  python launch/plan.py --recipe launch/recipes/qwen3-4b-full-600k.yaml --world 64
  python launch/plan.py --recipe R --lengths FILE       a line per row: prompt,cot,answer tokens
  python launch/plan.py --recipe R --scorecard FILE     the GPU as bench.py gpu measured it

Lengths come from the run's shards; before there are any, from --lengths, or they are assumed. Hours
come from a model of each kind of GPU with the kernels of this environment, or from --mfu.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common.arguments import whole_number
from abscot.common.errors import UserError
from abscot.pipeline.launchers import ranks_to_train_on
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
        help="share of the peak FLOPs that busy GPUs reach, measured: use what bench.py gpu or the "
        "train log says (default: what the model of each kind of GPU says)",
    )
    parser.add_argument(
        "--scorecard",
        type=Path,
        metavar="FILE",
        help="JSON of bench.py gpu: what its GPU reaches, in place of published rates",
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
    world = ranks_to_train_on(recipe.train.num_gpus) if args.world is None else args.world
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise UserError(f"--mfu {args.mfu}: expected a share above 0, at most 1")
    if args.mfu and args.scorecard:
        raise UserError("--mfu and --scorecard: expected one of them; the first says all")
    report = preflight(recipe, world, args.mfu, args.lengths, args.scorecard)
    print(json.dumps(report, indent=1) if args.json else render(report))


cli.run(main)
