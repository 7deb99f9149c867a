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
from abscot.method.lineage import training_of
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
    recipe = cli.recipe_of(args)
    run = Run.of(recipe)
    training = training_of(recipe, run, args.phase, args.round)
    take_ranks_from_slurm()
    from abscot.training.train_phase import train

    train(training, exclusive(run.root, RUN))


cli.run(main)
