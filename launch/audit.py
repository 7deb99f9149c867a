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
from abscot.recipe.run import open_run
from abscot.training.audit import audit, render


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="directory of the run")
    run, recipe = open_run(parser.parse_args().run)
    findings = audit(recipe, run)
    print(render(findings))
    return int(any(finding.faults for finding in findings))


cli.run(main)
