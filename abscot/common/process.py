"""Processes: they end with the one that started them, when asked, and find free ports."""

import atexit
import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

PARENT = "ABSCOT_PARENT_PID"


def die_with_parent() -> None:
    """Ends this process when the runner that started it is gone: a killed run must leave no second
    writer.
    """
    parent = os.environ.get(PARENT, "")
    if re.fullmatch("[1-9][0-9]{0,8}", parent):
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while True:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1)


def leave(code: int) -> NoReturn:
    """Ends this process with `code`; a rank without Python's teardown.

    A gloo thread that lets go of its last tensor during the teardown aborts the process
    (pytorch/pytorch#190489), and a training that went well would count as crashed. Destroying the
    process groups does not end those threads: DeepSpeed keeps the groups.
    """
    if not _is_rank():
        sys.exit(code)
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_rank() -> bool:
    torch = sys.modules.get("torch")  # a command that never loaded it has no ranks
    return torch is not None and torch.distributed.is_initialized()


class StopRequest:
    """`asked` once one of the signals has come: what runs then saves and ends by itself."""

    def __init__(self, *signals: signal.Signals):
        self.asked = False
        for number in signals:
            signal.signal(number, self.ask)

    def ask(self, *_) -> None:
        self.asked = True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
