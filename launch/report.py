"""Writes the report of a run: tables, plots, examples, model card; a half-done run as far
as it is.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.recipe.run import Run, open_run
from abscot.reporting import report


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="run directory, e.g. runs/tiny-cpu (default: the recipe's)",
    )
    args = parser.parse_args()
    run, _ = open_run(args.run or Run.of(cli.recipe_of(args)).root)
    index = report.write(run)
    print(report.table(run))
    print(f"\nreport: {index}")


cli.run(main)
