"""What ends a command early, and with which exit code."""

import reprlib
from pathlib import Path

SHOWN_CHARS = 80


def printable(text: str) -> str:
    """`text` with what cannot be printed on a line as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(text: object, chars: int = SHOWN_CHARS) -> str:
    """Foreign text, or a value, for a message: on one line, of bearable length."""
    text = text if isinstance(text, str) else reprlib.repr(text)
    return printable(text[:chars]) + ".." * (len(text) > chars)


class UserError(Exception):
    """A mistake of the user's: one line that names the file, line or key, what was expected and
    what mends it.
    """

    def __str__(self) -> str:
        """Printable whatever a path or a value holds, line breaks among it."""
        return printable(self.line())

    def line(self) -> str:
        return super().__str__()


class MachineError(UserError):
    """One machine cannot do what was asked of it; other nodes of a job may. The first of its ranks
    tells.
    """


class MissingInput(UserError):
    """An input that some stage makes; the command line adds which command that is."""

    def __init__(self, path: Path, what: str = "missing or unfinished"):
        super().__init__(path, what)  # both, so that it can be pickled: MPI ranks pass it on
        self.path, self.what = path, what

    def line(self) -> str:
        return f"{self.path}: {self.what}"


class DamagedInput(MissingInput):
    """An input that is there, but not as its stage wrote it. what: the file, and what is wrong."""

    def line(self) -> str:
        return f"{self.what}; delete {self.path}"


# Exit code of what was asked to stop and goes on when the same command is given again
# (EX_TEMPFAIL).
REQUEUE = 75


# Exit code of a stage that would fail again: a mistake in the input, a loss that is not finite.
NEEDS_A_PERSON = 2


class StageCrashed(Exception):
    """A stage ended in a way that need not happen again: a node, a rank or a driver that died, no
    memory, a hang.
    """
