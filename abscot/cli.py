"""What every launch script shares: --recipe and --set, and one clear line with exit code 2 for a
user's mistake.
"""

import argparse
import locale
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from abscot.common.disk import error_line, exit_code, one_line
from abscot.common.errors import (
    NEEDS_A_PERSON,
    MachineError,
    MissingInput,
    StageCrashed,
    UserError,
)
from abscot.common.gpus import hide_where_asked
from abscot.common.process import die_with_parent, leave
from abscot.method import schedules
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
    recipe = load_recipe(args.recipe, args.set)
    schedules.check(recipe)
    return recipe


def run(main: Callable[[], int | None]) -> None:
    """Runs a launch script's main: one line and exit 2 where the same command would fail again (a
    user's mistake, a full disk, a loss that is not finite), exit 1 where it need not, exit 130
    after Ctrl-C.
    """
    _speak_utf8()
    threading.excepthook = _end_of_thread
    die_with_parent()
    hide_where_asked()
    try:
        code = main() or 0
        sys.stdout.flush()
    except SystemExit as end:  # asked to stop, or argparse
        code = end.code or 0
    except MissingInput as error:
        _end(f"error: {error}; make it with: {_maker_of(error.path)}", NEEDS_A_PERSON)
    except MachineError as error:
        first = os.environ.get("LOCAL_RANK", "0") in ("0", "")
        _end(f"error: {error}", NEEDS_A_PERSON, of_this_rank=first)
    except (UserError, FloatingPointError) as error:
        _end(f"error: {error}", NEEDS_A_PERSON)
    except StageCrashed as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        _end("interrupted; the same command goes on from the last finished piece of work", 130)
    except BrokenPipeError:
        code = 1
    except OSError as error:
        _end(f"error: {error_line(error)}", exit_code(error), of_this_rank=True)
    except MemoryError as error:
        _end(f"error: out of memory ({one_line(error) or 'MemoryError'})", 1, of_this_rank=True)
    except RecursionError as error:
        _end(f"error: an input is nested too deep ({one_line(error)})", NEEDS_A_PERSON)
    _leave(code)


def _speak_utf8() -> None:
    """Files are UTF-8 whatever the terminal can show; what it cannot, it shows as `?`."""
    is_utf8 = locale.getpreferredencoding(False).lower() == "utf-8"
    if not is_utf8 and os.environ.get("PYTHONUTF8") != "1" and sys.argv[0] != "-":  # a script, once
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    sys.stdout.reconfigure(errors="replace")
    sys.stderr.reconfigure(errors="replace")


def _end_of_thread(thread) -> None:
    """A writer's full disk is one line; the main thread meets it too, and ends."""
    if isinstance(thread.exc_value, OSError):
        print(f"error: {error_line(thread.exc_value)}", file=sys.stderr, flush=True)
    else:
        threading.__excepthook__(thread)


def _maker_of(path: Path) -> str:
    """The command that makes `path` in the run that it lies in, or in that of the recipe given."""
    path, args = path.resolve(), recipe_parser("").parse_known_args()[0]
    try:
        for directory in path.parents:
            if Run(directory).config.is_file():
                return maker_of(open_run(directory)[1], path)
        return maker_of(recipe_of(args), path)
    except (UserError, OSError):
        return "python launch/round.py --round all"


def _end(line: str, code: int, of_this_rank: bool = False) -> NoReturn:
    """of_this_rank: the other ranks do not know of it."""
    if of_this_rank or os.environ.get("RANK", "0") in ("0", ""):
        print(line, file=sys.stderr, flush=True)
    _leave(code)


def _leave(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:  # a reader that has gone, a disk that is full: not again at the very end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    leave(code)
