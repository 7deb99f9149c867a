"""Trains and evaluates the paper's rows and ours on one base and one data set, and prints them in
one table.

  python launch/ladder.py --recipe tiny-cpu             rounds, baselines, other schedule, channels
  python launch/ladder.py --recipe tiny-cpu --json      a JSON object a row; progress on stderr
  python launch/ladder.py --recipe tiny-cpu --dry-run   every stage and command; nothing is run
  python launch/ladder.py --recipe tiny-cpu --set seed=1 --set name=tiny-cpu-1    another seed

Rows: the base in its modes (verbal CoT, thinking, no CoT), SFT (no CoT), SFT (CoT), pause tokens,
Abstract-CoT after each round, by the recipe's own schedule and by the other one (paper, grounded).
The other one is a run of its own beside it, NAME-paper or NAME-grounded, which gets base and data
from the first. Each abstract model is also asked behind another problem's trace (swapped) and
behind its own trace shuffled. Each baseline trains on as many answers as all rounds of the
recipe's schedule together (train.phase_epochs changes that). A run that was made by
launch/round.py is taken up: what is done is not done again.

In --json: label, benchmark, accuracy with its 95% interval (low, high), tokens of an answer,
swapped, permuted, the paired difference to SFT (no CoT) with its interval; in percent, null where
nothing was asked.
"""

import contextlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.recipe.schema import Recipe


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    how.add_argument("--json", action="store_true", help="print the rows as JSON lines")
    args = parser.parse_args()
    recipe = cli.recipe_of(args)

    from abscot.pipeline.ladder import dry_run, ladder_recipe, ladder_siblings
    from abscot.reporting.ladder import equalised, json_rows

    recipe = ladder_recipe(recipe)
    if args.json:
        with contextlib.redirect_stdout(sys.stderr):
            ladder, _ = climbed(recipe)
        print(json_rows(ladder))
        return
    plan = equalised(recipe, ladder_siblings(recipe))
    print(plan, flush=True)
    if args.dry_run:
        dry_run(recipe)
        return
    ladder, index = climbed(recipe)
    show(ladder, plan)
    print(f"report: {index}")


def climbed(recipe: Recipe):
    """Runs what is not done and writes the reports; returns the ladder and the first report."""
    from abscot.pipeline.ladder import ladder_siblings, run_ladder
    from abscot.recipe.run import Run
    from abscot.reporting import report, run_data
    from abscot.reporting.ladder import read_ladder

    run_ladder(recipe)
    for other in ladder_siblings(recipe):
        report.write(Run.of(other))
    run = Run.of(recipe)
    return read_ladder(run_data.read(run)), report.write(run)


def show(ladder, plan: str) -> None:
    from abscot.reporting.ladder import channel_table, ladder_table, schedules_table
    from abscot.reporting.published import NOTE, any_beside

    tables = filter(None, (ladder_table(ladder), schedules_table(ladder), channel_table(ladder)))
    notes = [plan, *ladder.left_out, *[NOTE] * any_beside(ladder.own.recipe.eval.benchmarks)]
    print("\n\n".join(["", *(table.text() for table in tables), *notes]))


cli.run(main)
