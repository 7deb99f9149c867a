"""Where a run stands, on one screen: what is done, what runs and how long still, what failed, why,
its log.

python launch/status.py runs/tiny-cpu
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.pipeline import status


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run directory, e.g. runs/tiny-cpu")
    print(status.screen(parser.parse_args().run))


cli.run(main)
