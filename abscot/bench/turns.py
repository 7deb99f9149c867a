"""Processes that take their steps in turns: each has its own memory and its own libraries, and a
busy machine slows all alike.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from abscot.common.errors import StageCrashed
from abscot.common.hardware import peak_memory_bytes

LAST_LINES = 20


class Side:
    """`python -m MODULE REPORTS ARGUMENTS` in a process that steps when told. What it prints is
    shown where it dies.
    """

    def __init__(self, module: str, *arguments: str):
        self._name = " ".join([module, *arguments])
        self._printed = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        reports, theirs = os.pipe()
        self._reports = os.fdopen(reports)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs), *arguments],
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs],
            text=True,
        )
        os.close(theirs)

    def step(self) -> dict:
        """What the process reports of its next step. Raises StageCrashed where it ends instead."""
        with contextlib.suppress(BrokenPipeError):  # what it printed says why
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        line = self._reports.readline()
        if not line:
            self._process.wait()
            self._printed.seek(0)
            last = "".join(self._printed.readlines()[-LAST_LINES:])
            raise StageCrashed(f"{self._name} ended before its step:\n{last}")
        return json.loads(line)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reports.close()
        self._printed.close()


class Turn:
    """Inside such a process. reports: its first argument."""

    def __init__(self, reports: str):
        self._reports = os.fdopen(int(reports), "w")

    def begin(self) -> None:
        """Waits until it is this process's turn. Raises SystemExit where nobody will say so any
        more.
        """
        if not sys.stdin.readline():
            raise SystemExit
        self._began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """The step is done: what is computed until `report` does not count."""
        self._ended = time.perf_counter(), time.process_time()

    def report(self, loss: float, tokens: int, bins: int) -> None:
        """loss: per supervised token; tokens: without padding."""
        seconds, cpu_seconds = np.subtract(self._ended, self._began)
        step = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "loss": loss,
            "tokens": tokens,
            "bins": bins,
            "peak_bytes": peak_memory_bytes(),
        }
        print(json.dumps(step), file=self._reports, flush=True)
