"""Runs the stages of one round, or of the whole run: traces, training, export and evaluation.

  python launch/round.py --round 2     one round: an array task of slurm/round.sbatch
  python launch/round.py --round 0     before the rounds: world, base, shards
  python launch/round.py --round all   everything, then the report
  python launch/round.py --round all --dry-run   the stages, what they read and write, commands

The recipe's `baselines` are trained and asked with the last round. A stage that is done is skipped;
a stage that was killed goes on or starts again.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.pipeline import launchers, runner
from abscot.pipeline.stages import select


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    parser.add_argument(
        "--round",
        required=True,
        metavar="R",
        help="1 to rounds, 0 for what comes before them, or all",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, and run nothing"
    )
    parser.add_argument(
        "--without-evaluation", action="store_true", help="leave that to launch/evaluate.py"
    )
    args = parser.parse_args()
    recipe = cli.recipe_of(args)
    stages = select(recipe, args.round)
    if args.without_evaluation:
        stages = [stage for stage in stages if stage.kind != "evaluate"]
    if fewer := launchers.fewer_ranks(recipe.train.num_gpus):
        print(fewer, flush=True)
    if args.dry_run:
        job, walltimes = launchers.allocation(), {}
        if job:
            from abscot.pipeline.preflight import stage_walltimes

            walltimes = stage_walltimes(recipe, job.tasks)
        runner.dry_run(recipe, stages, walltimes)
        return
    runner.run_stages(recipe, stages)
    if args.round == "all":
        from abscot.recipe.run import Run
        from abscot.reporting import report

        run = Run.of(recipe)
        report.write(run)
        print(report.table(run))
        print(f"report: {run.report / 'index.html'}")


cli.run(main)
