"""What every launch script shares: --recipe and --set, and one clear line with exit code 2 for a
user's mistake.
"""

import argparse
import os
import sys
from collections.abc import Callable

from abscot import runner
from abscot.config import DEFAULT_RECIPE, Recipe, UserError, load_recipe


def recipe_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    shipped = f"a file, or a name of launch/recipes (default: {DEFAULT_RECIPE.name}, the embedded tiny run)"
    parser.add_argument("--recipe", metavar="FILE", help=f"recipe to use: {shipped}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a recipe key, e.g. --set train.lr=1e-4 (repeatable)",
    )
    return parser


def recipe_of(args: argparse.Namespace) -> Recipe:
    return load_recipe(args.recipe, args.set)


def run(main: Callable[[], int | None]) -> None:
    """Runs a launch script's main: one line and exit 2 where the same command would fail again (a
    user's mistake, a loss that is not finite), exit 1 where it need not, exit 130 after Ctrl-C.
    """
    runner.die_with_parent()
    try:
        code = main() or 0
    except (UserError, FloatingPointError) as error:
        _end(f"error: {error}", runner.NEEDS_A_PERSON)
    except runner.StageCrashed as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        _end("interrupted; the same command goes on from the last finished piece of work", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code)


def _end(line: str, code: int) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, file=sys.stderr, flush=True)
    sys.exit(code)
