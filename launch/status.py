"""Where a run stands, on one screen: what is done, what runs and how long still, what failed, why,
its log.

python launch/status.py runs/tiny-cpu
"""

import argparse
import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from abscot import cli, status  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run directory, e.g. runs/tiny-cpu")
    print(status.screen(parser.parse_args().run))


cli.run(main)
