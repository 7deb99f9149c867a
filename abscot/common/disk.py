"""What a disk says, in one line: full, read-only, a name too long."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from abscot.common.errors import NEEDS_A_PERSON, UserError, printable

MEND = {  # what the same command would meet again -> what helps
    errno.ENOSPC: "make room, then give the same command again: it goes on",
    errno.EDQUOT: "make room, then give the same command again: it goes on",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), then give the same command again",
    errno.EROFS: "make it writable, or take another run_root",
    errno.EACCES: "give yourself access to it, or take another run_root",
    errno.EPERM: "give yourself access to it, or take another run_root",
    errno.ENAMETOOLONG: "take a shorter name or run_root",
    errno.ENOENT: "it was there before: is it being removed, or on another node?",
    errno.EISDIR: "expected a file",
    errno.ENOTDIR: "expected a directory",
    errno.EEXIST: "move it away",
    errno.ELOOP: "mend the links",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of writing to `path` that knows no name by itself names it; so does one of
    safetensors or Arrow, which have the system's number in their text.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if getattr(error, "filename", None) is None and (number := _errno(error)):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)|\[errno (\d+)\]", str(error), re.IGNORECASE)
    return found and int(found[1] or found[2])


def error_line(error: OSError) -> str:
    """File, what is wrong with it, what helps."""
    where = error.filename if error.filename is not None else "standard output or a file"
    if error.errno is None:  # of a library: a network, a Parquet file
        return one_line(error) or type(error).__name__
    where = where.decode(errors="replace") if isinstance(where, bytes) else str(where)
    parts = (f"{printable(where)}: {error.strerror}", MEND.get(error.errno))
    return "; ".join(filter(None, parts))


def exit_code(error: OSError) -> int:
    """Would the same command meet it again?"""
    return NEEDS_A_PERSON if error.errno in MEND else 1


def one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split())[:500])
