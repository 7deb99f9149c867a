"""Trains and evaluates the paper's rows on one base and one data set, and prints them in one table.

  python launch/ladder.py --recipe tiny-cpu              the rounds, the baselines and the channel of every round
  python launch/ladder.py --recipe tiny-cpu --dry-run    every stage, its inputs, outputs and command; nothing is run

Rows: verbal CoT and no CoT of the base, SFT (no CoT), SFT (CoT), pause tokens, Abstract-CoT after
each round. Each baseline trains on as many answers as all rounds together (train.phase_epochs
changes that). A run that was made by launch/round.py is taken up: what is done is not done again.
"""

import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from abscot import cli  # noqa: E402


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, and run nothing"
    )
    args = parser.parse_args()
    recipe = cli.recipe_of(args)

    from abscot import ladder, report, run_data, runner
    from abscot.paths import Run

    recipe, run = ladder.recipe_of(recipe), Run.of(recipe)
    print(ladder.equalised(recipe), flush=True)
    plan = ladder.stages(recipe)
    if args.dry_run:
        runner.dry_run(recipe, plan)
        return
    runner.run_stages(recipe, plan)
    index = report.write(run)
    data = run_data.read(run)
    tables = (ladder.table(data), ladder.channel_table(data))
    print(
        "\n\n".join(
            [
                "",
                *(table.text() for table in tables if table),
                ladder.equalised(recipe),
                report.PAPER,
            ]
        )
    )
    print(f"report: {index}")


cli.run(main)
