"""Proves from a run's plans and logs that every phase trained on every (epoch, row) exactly once.

  python launch/audit.py runs/tiny-cpu

Prints the counts of every phase; exit code 1 where a phase is not trained, not complete or not
exact.
"""

import argparse
import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from abscot import cli  # noqa: E402
from abscot.audit import audit, render  # noqa: E402
from abscot.config import UserError, load_recipe  # noqa: E402
from abscot.paths import Run  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="directory of the run")
    run = Run(parser.parse_args().run)
    if not run.config.is_file():
        raise UserError(
            f"{run.config}: missing; expected the directory of a run, e.g. runs/tiny-cpu"
        )
    findings = audit(load_recipe(run.config), run)
    print(render(findings))
    return int(any(finding.faults for finding in findings))


cli.run(main)
