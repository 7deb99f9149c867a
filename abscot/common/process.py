"""Processes: they end with the one that started them, when asked, and find free ports."""

import os
import signal
import socket
import threading
import time

PARENT = "ABSCOT_PARENT_PID"


def die_with_parent() -> None:
    """Ends this process when the runner that started it is gone: a killed run must leave no second
    writer.
    """
    parent = os.environ.get(PARENT)
    if parent:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while True:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1)


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
