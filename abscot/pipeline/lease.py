"""One writer per run directory, on any node: a lease that its owner renews, and that is taken over
when it is dead.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import threading
import time
from pathlib import Path

from abscot.common import files
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.pipeline.launchers import job_id

LEASE_S = 60.0  # an owner that has not renewed its lease for so long is dead
RENEWALS = 6  # in that time
TAKEN_OVER = signal.SIGUSR2  # not SIGINT: a shell script has what it starts with `&` ignore that


@contextlib.contextmanager
def exclusive(directory: Path, lease_s: float = LEASE_S):
    """Holds `directory`, in the main thread. Raises UserError where another process works on it,
    KeyboardInterrupt when another has taken it over.

    Whether an owner on this host lives, the kernel's lock tells at once. An owner on another host,
    where the file system may not share that lock, lives if it renews its lease; an earlier life of
    this very Slurm job does not.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lease, me = directory / ".lease", _owner()
    with open(directory / ".lock", "a") as kernels:
        try:
            fcntl.flock(kernels, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(directory, _read(lease)) from None
        before = _read(lease)
        if (
            before
            and before["host"] != me["host"]
            and (not me["job"] or before["job"] != me["job"])
        ):
            _outlive(directory, lease, before, lease_s)
        files.write_json_atomic(lease, me)
        before_us = signal.signal(TAKEN_OVER, signal.default_int_handler)
        ended = threading.Event()
        renewing = threading.Thread(
            target=_renew, args=(lease, me, lease_s / RENEWALS, ended), daemon=True
        )
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            signal.signal(TAKEN_OVER, before_us)
            if _read(lease) == me:
                lease.unlink()


def _owner() -> dict:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": job_id(),
        "token": secrets.token_hex(8),
    }


def _read(lease: Path) -> dict | None:
    try:
        return json.loads(lease.read_text())
    except FileNotFoundError:
        return None


def _taken(directory: Path, owner: dict | None) -> UserError:
    who = (
        f"pid {owner['pid']} on {owner['host']}" + f", job {owner['job']}" * bool(owner["job"])
        if owner
        else "just started"
    )
    return UserError(
        f"{directory}: another process works on this run ({who}); wait for it or end it"
    )


def _outlive(directory: Path, lease: Path, owner: dict, lease_s: float) -> None:
    """Returns once the lease has run out. Raises UserError when it is renewed. Ages are by the file
    system's clock.
    """
    first = lease.stat().st_mtime
    log(
        f"{lease}: held by pid {owner['pid']} on {owner['host']}; taken over if it is not renewed "
        f"in {lease_s:.0f} s"
    )
    probe = directory / f".clock.{os.getpid()}"
    try:
        while True:
            probe.touch()
            if not lease.exists():
                return
            renewed = lease.stat().st_mtime
            if renewed != first:
                raise _taken(directory, owner)
            if probe.stat().st_mtime - renewed > lease_s:
                return
            time.sleep(lease_s / RENEWALS / 4)
    finally:
        probe.unlink(missing_ok=True)


def _renew(lease: Path, me: dict, every_s: float, ended: threading.Event) -> None:
    """Also finds out when somebody has taken over (this node was cut off for long): then this
    process must end.
    """
    while not ended.wait(every_s):
        with contextlib.suppress(
            OSError
        ):  # a file system that is away for a moment; the lease may then run out
            if _read(lease) != me:
                print(f"error: {lease}: taken over by another process; ending this one", flush=True)
                os.kill(os.getpid(), TAKEN_OVER)
                return
            os.utime(lease)
