"""Proves from a run's plans and logs that every phase trained on every (epoch, row) exactly once.

  python launch/audit.py runs/tiny-cpu

Prints the counts of every phase; exit code 1 where a phase is not trained, not complete or not
exact.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common.errors import UserError
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run
from abscot.training.audit import audit, render


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
