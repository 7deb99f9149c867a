"""What every launch script shares: --recipe and --set, and one clear line with exit code 2 for a
user's mistake.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from abscot.common.errors import NEEDS_A_PERSON, MissingInput, StageCrashed, UserError
from abscot.common.process import die_with_parent, leave
from abscot.pipeline.stages import maker_of
from abscot.recipe.load import DEFAULT_RECIPE, load_recipe
from abscot.recipe.run import Run, open_run
from abscot.recipe.schema import Recipe


def recipe_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help=f"a file, or a name of launch/recipes (default: {DEFAULT_RECIPE.name}, the tiny run)",
    )
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
    die_with_parent()
    try:
        code = main() or 0
    except SystemExit as end:  # asked to stop, or argparse
        code = end.code or 0
    except MissingInput as error:
        _end(f"error: {error}; make it with: {_maker_of(error.path)}", NEEDS_A_PERSON)
    except (UserError, FloatingPointError) as error:
        _end(f"error: {error}", NEEDS_A_PERSON)
    except StageCrashed as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        _end("interrupted; the same command goes on from the last finished piece of work", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    leave(code)


def _maker_of(path: Path) -> str:
    """The command that makes `path` in the run that it lies in, or in that of the recipe given."""
    path, args = path.resolve(), recipe_parser("").parse_known_args()[0]
    try:
        for directory in path.parents:
            if Run(directory).config.is_file():
                return maker_of(open_run(directory)[1], path)
        return maker_of(recipe_of(args), path)
    except UserError:
        return "python launch/round.py --round all"


def _end(line: str, code: int) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, file=sys.stderr, flush=True)
    leave(code)
