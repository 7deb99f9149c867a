"""Paths as users write them: `~`, globs, and names that only look like globs."""

import os
from pathlib import Path

MAGIC = "*?["


def matching(pattern: str) -> list[Path]:
    """The paths that `pattern` names, sorted; none where there are none.

    `~` is the home directory. What exists under just this name is taken literally, brackets and
    all. Otherwise `*`, `?`, `[..]` match inside a name, and `**` any number of directories; names
    that begin with a dot and directories are left out, and links to directories are not followed,
    so that no loop of links is walked.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.lexists(pattern):
        return [Path(pattern)]
    parts = Path(pattern).parts
    first = next((i for i, part in enumerate(parts) if _is_magic(part)), None)
    if first is None or "\0" in pattern:
        return []
    root, rest = Path(*parts[:first]), list(parts[first:])
    if rest[-1] == "**":  # pathlib would give the directories alone
        rest.append("*")
    rest = [part if part == "**" else part.replace("**", "*") for part in rest]
    found = [path for path in root.glob(os.path.join(*rest)) if not _hidden(path, root)]
    return sorted(path for path in found if path.is_symlink() or not path.is_dir())


def _is_magic(part: str) -> bool:
    return any(mark in part for mark in MAGIC)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
