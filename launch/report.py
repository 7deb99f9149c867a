"""Writes the report of a run: tables, plots, examples, model card; a half-done run as far as it is."""

import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from abscot import cli, report  # noqa: E402
from abscot.paths import Run  # noqa: E402


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="run directory, e.g. runs/tiny-cpu (default: the recipe's)",
    )
    args = parser.parse_args()
    run = Run(args.run) if args.run else Run.of(cli.recipe_of(args))
    index = report.write(run)
    print(report.table(run))
    print(f"\nreport: {index}")


cli.run(main)
