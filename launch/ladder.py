"""Trains and evaluates the paper's rows on one base and one data set, and prints them in one table.

  python launch/ladder.py --recipe tiny-cpu             rounds, baselines, channel of every round
  python launch/ladder.py --recipe tiny-cpu --dry-run   every stage and command; nothing is run

Rows: the base in its modes (verbal CoT, thinking, no CoT), SFT (no CoT), SFT (CoT), pause tokens,
Abstract-CoT after each round. Each baseline trains on as many answers as all rounds together
(train.phase_epochs changes that). A run that was made by launch/round.py is taken up: what is done
is not done again.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, and run nothing"
    )
    args = parser.parse_args()
    recipe = cli.recipe_of(args)

    from abscot.pipeline.ladder import dry_run, ladder_recipe, run_ladder
    from abscot.recipe.run import Run
    from abscot.reporting import report, run_data
    from abscot.reporting.ladder import channel_table, equalised, ladder_table
    from abscot.reporting.published import NOTE, any_beside

    recipe, run = ladder_recipe(recipe), Run.of(recipe)
    print(equalised(recipe), flush=True)
    if args.dry_run:
        dry_run(recipe)
        return
    run_ladder(recipe)
    index = report.write(run)
    data = run_data.read(run)
    tables = (ladder_table(data), channel_table(data))
    print(
        "\n\n".join(
            [
                "",
                *(table.text() for table in tables if table),
                equalised(recipe),
                *[NOTE] * any_beside(recipe.eval.benchmarks),
            ]
        )
    )
    print(f"report: {index}")


cli.run(main)
