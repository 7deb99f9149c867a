"""Trains one phase of one round and exports its model.

  deepspeed launch/train.py --phase A                           the tiny recipe, round 1
  deepspeed launch/train.py --phase B --round 2 --recipe launch/recipes/qwen3-4b-full-600k.yaml
  torchrun, srun (one task per GPU) and plain python start it too

Phases: A and B of the rounds, and the baselines sft_cot, sft_no_cot and pause, trained once from
the base. Its inputs come from the stages before it; where one is missing, the message names the
command that makes it. A run that was killed goes on from its newest checkpoint; SIGTERM or SIGUSR1
saves one and exits with code 75.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common.arguments import whole_number
from abscot.common.errors import UserError
from abscot.method.lineage import Training
from abscot.method.phases import PHASES
from abscot.pipeline.launchers import take_ranks_from_slurm
from abscot.pipeline.lease import RUN, exclusive
from abscot.recipe.run import Run


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    parser.add_argument("--phase", required=True, help=" | ".join(PHASES))
    parser.add_argument(
        "--round", type=whole_number(1), default=1, help="1 to the recipe's rounds (default 1)"
    )
    # given by the deepspeed launcher; unused
    parser.add_argument("--local_rank", type=whole_number(0), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase not in PHASES:
        raise UserError(f"--phase {args.phase}: expected one of {', '.join(PHASES)}")
    recipe = cli.recipe_of(args)
    if not 1 <= args.round <= recipe.rounds:
        raise UserError(
            f"--round {args.round}: expected 1 to {recipe.rounds} (rounds in the recipe)"
        )
    take_ranks_from_slurm()
    from abscot.training.train_phase import train

    run = Run.of(recipe)
    train(Training(recipe, run, PHASES[args.phase], args.round), exclusive(run.root, RUN))


cli.run(main)
