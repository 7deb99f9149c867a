"""A model in a process of its own, started once and asked many times.

vLLM keeps a GPU's memory until its process ends, and prints as it likes: so each model has one, and
what it prints goes to a file, which is shown where the process dies.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from abscot.common.errors import StageCrashed, UserError
from abscot.common.process import PARENT, die_with_parent, leave
from abscot.evaluation.ask_model import Asked, AskedModel, Told
from abscot.evaluation.ask_text import Piece

START, STOP = "start", "stop"
END_S = 5  # a process that was let go of has so long


class ModelProcess:
    """Begins to look for its model at once. All of it raises UserError for a mistake of the user's,
    StageCrashed where the process has died.
    """

    def __init__(self, asked: Asked, serve=None):
        """serve: what the process does, for tests."""
        self.name = asked.name
        log, path = tempfile.mkstemp(prefix="abscot-ask-", suffix=".log")
        os.close(log)
        self._log = Path(path)
        context = multiprocessing.get_context("spawn")
        self._channel, theirs = context.Pipe()
        arguments = (asked, theirs, path, os.getpid())
        self._process = context.Process(target=serve or _serve, args=arguments)
        # Ctrl-C at the terminal goes to all its processes; this one is told by us what to end.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()
        self._runs = False

    def find(self) -> None:
        """Waits until the model is found and checked."""
        self._received()

    def start(self) -> None:
        """Starts its engine, and waits until that can be asked."""
        self._send(START)
        self._received()
        self._runs = True

    def ask(self, question: str, number: int) -> Iterator[Piece | Told]:
        """Pieces of the answer as they come, then what was told."""
        self._send((question, number))
        while not isinstance(event := self._received(), Told):
            yield event
        yield event

    def stop(self) -> None:
        """Ends the answer that is being made: it then says that it was stopped."""
        self._send(STOP)

    def _send(self, message) -> None:
        with contextlib.suppress(BrokenPipeError):  # that it has died is said by what is read next
            self._channel.send(message)

    def _received(self):
        try:
            event = self._channel.recv()
        except (EOFError, ConnectionError):
            self._process.join(END_S)
            raise StageCrashed(
                f"the engine of {self.name} ended ({self._last_line()}); its output: {self._log}"
            ) from None
        if isinstance(event, UserError):
            raise event
        return event

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:400] if lines else f"exit code {self._process.exitcode}"

    def close(self) -> None:
        """Ends the process. What it printed is kept where it died by itself."""
        crashed = self._process.exitcode not in (None, 0)
        self._channel.close()
        self._process.join(END_S if self._runs else 0)
        for end in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                end()
                self._process.join(END_S)
        if not crashed:
            self._log.unlink(missing_ok=True)


def _serve(asked: Asked, channel, log: str, parent: int) -> None:
    """Inside the process: sends None when the model is found, and when it can be asked; then
    answers until nobody asks.
    """
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ[PARENT] = str(parent)
    die_with_parent()
    with contextlib.suppress(EOFError, ConnectionError):  # nobody listens any more
        try:
            model = AskedModel(asked)
            channel.send(None)
            assert channel.recv() == START
            model.start()
        except UserError as error:
            channel.send(error)
            return
        channel.send(None)
        serve_questions(model, channel)
    leave(0)  # torch's teardown takes seconds


def serve_questions(model: AskedModel, channel) -> None:
    """Until the other end is closed: that raises EOFError or ConnectionError."""
    while True:
        message = channel.recv()
        if message == STOP:  # it came when the answer was there
            continue
        try:
            for event in model.answer(*message, stopped=channel.poll):
                channel.send(event)
        except UserError as error:
            channel.send(error)
