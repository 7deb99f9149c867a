"""A command that is watched: its lines with the seconds at which they came, and its end in time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from abscot.common.process import PARENT
from abscot.pipeline.runner import last_error
from abscot.recipe.load import ROOT

POLL_S = 0.05


class Command:
    """A process in a session of its own, whose output goes into `log`.

    lines: (seconds since its start, line), as they came. As a context manager it leaves nothing
    running.
    """

    def __init__(self, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.lines = log, []
        self.began_s = time.monotonic()
        environ = {**(environ or os.environ), PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._output = open(log, "rb")  # noqa: SIM115  see __exit__

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()

    def wait(self, limit_s: float, until: Callable[[], bool] = lambda: False) -> int | None:
        """The exit code; None where `until` came true before. Raises TimeoutExpired after
        `limit_s` more seconds.
        """
        ends_s = time.monotonic() + limit_s
        while (code := self.process.poll()) is None:
            self._read()
            if until():
                return None
            if time.monotonic() > ends_s:
                raise subprocess.TimeoutExpired(self.process.args, limit_s)
            time.sleep(POLL_S)
        self._read(to_its_end=True)
        return code

    def _read(self, to_its_end: bool = False) -> None:
        now_s = time.monotonic() - self.began_s
        while line := self._output.readline():
            if not (to_its_end or line.endswith(b"\n")):  # the rest of it is still to come
                self._output.seek(-len(line), os.SEEK_CUR)
                return
            self.lines.append((now_s, line.decode(errors="replace").rstrip()))

    def seconds_at(self, words: object) -> float | None:
        """When the first line came that holds `words`."""
        return next((at_s for at_s, line in self.lines if str(words) in line), None)

    def signal_ranks(self, number: signal.Signals) -> None:
        """To the training processes, not to their launcher."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(word.startswith("--local_rank") for word in child.cmdline()):
                    child.send_signal(number)

    def why(self) -> str:
        """Why it failed, in one line."""
        return f"{last_error([line for _, line in self.lines])}; its log: {self.log}"


def json_of(arguments: Sequence[str], log: Path, limit_s: float) -> dict:
    """The JSON object that `python -m arguments` prints last; its memory is of nothing else.

    Raises RuntimeError where it fails, TimeoutExpired where it takes longer.
    """
    with Command([sys.executable, "-m", *arguments], log) as command:
        code = command.wait(limit_s)
        found = [line for _, line in command.lines if line.startswith("{")]
        if code or not found:
            raise RuntimeError(f"exit {code}: {command.why()}")
        return json.loads(found[-1])
