"""The real server, started by launch/serve.py as a user starts it.

with serve(run.base) as url:
    openai.OpenAI(base_url=url, api_key="none")
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from abscot.common.process import free_port
from abscot.recipe.load import ROOT

START_S, STOP_S = 300, 30


def serve(model: Path, *arguments: str, recipe: Path | None = None):
    """A server with `model`, as `running` gives it. arguments: of launch/serve.py, and vLLM's.
    recipe: where the model lies in no run.
    """
    words = ["--model", str(model), *arguments]
    words += ["--recipe", str(recipe)] if recipe else []
    return running([sys.executable, str(ROOT / "launch" / "serve.py"), *words])


@contextlib.contextmanager
def running(command: list[str], **environ: str) -> Iterator[str]:
    """Yields the base URL of the server that `command` starts, on a free port. SIGTERM ends it,
    leaving nothing of it.
    """
    port = free_port()
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, **environ},
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
            assert server.poll() is None, _said(log)
            server.send_signal(signal.SIGTERM)
            assert server.wait(STOP_S) == 0, _said(log)
            _wait_until_nothing_is_left(server.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_for(health: str, server: subprocess.Popen, log) -> None:
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=5):
            return
        assert server.poll() is None, _said(log)
        assert time.monotonic() - began < START_S, _said(log)
        time.sleep(0.2)


def _wait_until_nothing_is_left(session: int) -> None:
    """Python's own helpers end when they notice that their parent has."""
    began = time.monotonic()
    while left := _session(session):
        assert time.monotonic() - began < STOP_S, f"left running: {left}"
        time.sleep(0.1)


def _said(log) -> str:
    log.seek(0)
    return log.read()[-5000:]


def _session(leader: int) -> list[str]:
    """The processes of a session that are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            state, _, _, session = rest.split()[:4]
            if int(session) == leader and state != "Z":
                found.append(name)
    return found
