"""Who writes what in a run, on any node: leases.

A command that writes into a run holds a lease while it does: a file in RUN/.leases that says who it
is and which pieces of the run are its own. Two leases with a piece in common never live at the same
time, so that no file has two writers; whoever comes second is told who is first, and ends.

| command | pieces |
|---|---|
| round, ladder, world, extend, prepare, train | `run`: all that is made by one command at a time |
| traces | the chunks of its shard: other shards, of the same number of shards, run beside it |
| evaluate | the samples of its result files: other models, modes, benchmarks, cells run beside it |
| report | `report` |

Readers (status, audit, plan, publish) take none. A stage that the holder of `run` has started finds
that lease's file in ABSCOT_LEASE, and inherits it; traces and evaluate take their own all the same.

The kernel's lock on the file tells at once whether an owner lives, and is gone with its process.
Where the file system does not share that lock between nodes, an owner on another host lives if it
renews its lease; an earlier life of this very Slurm job does not. Two that start at the same moment
on two such hosts may both be refused, never both go on.
"""

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from abscot.common.disk import naming
from abscot.common.errors import UserError
from abscot.common.files import removed_on_error
from abscot.common.log import log
from abscot.common.record import Record
from abscot.pipeline.launchers import job_id, job_restarts
from abscot.recipe.run import Run, claim
from abscot.recipe.schema import Recipe

RUN, REPORT = "run", "report"  # pieces
INHERITED = "ABSCOT_LEASE"  # the file of the lease that the stages of its holder inherit
LEASE_S = 60.0  # an owner that has not renewed its lease for so long is dead
RENEWALS = 6  # in that time
ENDING_S = 60.0  # that an owner which lost its lease may take to end by itself
TAKEN_OVER = signal.SIGUSR2  # not SIGINT: a shell script has what it starts with `&` ignore that


class Lease(Record):
    """Who holds it, and which pieces of the run. restarts: how often Slurm had queued the job
    again.
    """

    host: str
    pid: int
    job: str | None
    restarts: int
    pieces: list[str]

    @classmethod
    def mine(cls, pieces: tuple[str, ...]) -> "Lease":
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            job=job_id(),
            restarts=job_restarts(),
            pieces=sorted(pieces),
        )

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}" + f", job {self.job}" * bool(self.job)

    def before(self, other: "Lease") -> bool:
        """Was this a life that the holder of `other` knows to be over?"""
        same_job = self.job and self.job == other.job and self.restarts < other.restarts
        return self.host == other.host or bool(same_job)


class Found(NamedTuple):
    """A lease in the way of another. lease: None where its file cannot be read."""

    path: Path
    lease: Lease | None
    locked: bool  # its owner lives


@contextlib.contextmanager
def claimed(recipe: Recipe) -> Iterator[Run]:
    """The recipe's run, held as `run`. Raises UserError as `claim` and `exclusive` do.

    The recipe is written into the run under the lease: a command that is refused must not change
    what the stages of another will read.
    """
    run = Run.of(recipe)
    if not run.config.is_file():
        claim(recipe)
    with exclusive(run.root, RUN):
        yield claim(recipe)


@contextlib.contextmanager
def exclusive(directory: Path, *pieces: str, lease_s: float = LEASE_S) -> Iterator[None]:
    """Holds `pieces` of the run at `directory`, in the main thread. Raises UserError where another
    process holds one of them, KeyboardInterrupt when another has taken it over.
    """
    folder = directory / ".leases"
    if pieces == (RUN,) and _inherits(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{secrets.token_hex(8)}.json"
    with _take(path, Lease.mine(pieces), lease_s), _passed_on(path, pieces):
        before = signal.signal(TAKEN_OVER, signal.default_int_handler)
        ended = threading.Event()
        renewing = threading.Thread(
            target=_renew, args=(path, lease_s / RENEWALS, ended), daemon=True
        )
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            signal.signal(TAKEN_OVER, before)
            with contextlib.suppress(OSError):  # then it runs out
                path.unlink()


def _inherits(folder: Path) -> bool:
    """Was this process started by the holder of the run? Raises UserError where that one holds it
    no more.
    """
    held = Path(os.environ.get(INHERITED, ""))
    if held.parent.resolve() != folder.resolve():
        return False  # of another run, or of none
    if held.is_file():
        return True
    raise UserError(
        f"{folder.parent}: the command that started this one works on this run no more ({held} is "
        "gone); start that command again"
    )


@contextlib.contextmanager
def _passed_on(path: Path, pieces: tuple[str, ...]) -> Iterator[None]:
    """What is started now inherits the lease, if it is the run's."""
    before = os.environ.get(INHERITED)
    if RUN in pieces:
        os.environ[INHERITED] = str(path.absolute())
    try:
        yield
    finally:
        os.environ.pop(INHERITED, None)
        if before is not None:
            os.environ[INHERITED] = before


def _take(path: Path, me: Lease, lease_s: float) -> IO:
    """Writes the lease; returns its file, which the kernel keeps locked until it is closed."""
    while True:
        with open(path.with_name("lock"), "a") as one_at_a_time:  # on this host
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            others = list(_in_the_way(path, me))
            if not others:
                file = _write(path, me)
                break
        _outlive(others[0], me, lease_s)
    # On another host, one may have come through the same gap.
    if others := list(_in_the_way(path, me)):
        path.unlink()
        file.close()
        raise _refusal(others[0], me)
    return file


_locked: weakref.WeakSet[IO] = weakref.WeakSet()
# A child that lives on when its parent is killed must not keep the parent's locks.
os.register_at_fork(after_in_child=lambda: [file.close() for file in _locked])


def _write(path: Path, me: Lease) -> IO:
    """The lease appears locked."""
    temp = path.with_suffix(".tmp")
    with naming(path), removed_on_error(temp):
        file = open(temp, "w")  # noqa: SIM115 (closed by the caller)
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(me.model_dump_json())
        file.flush()
        os.rename(temp, path)
    _locked.add(file)
    return file


def _in_the_way(mine: Path, me: Lease) -> Iterator[Found]:
    """The other leases with a piece of mine whose owners are not known to be dead; those of dead
    ones are removed.
    """
    for path in sorted(mine.parent.glob("*.json")):
        if path == mine or not path.is_file():
            continue
        try:
            locked = _is_locked(path)
            lease = Lease.read(path)
        except FileNotFoundError:
            continue
        except (UserError, RecursionError):  # not a lease, or gone by now
            lease = None
        if lease and not locked and lease.before(me):
            path.unlink(missing_ok=True)
        elif path.exists() and (lease is None or set(lease.pieces) & set(me.pieces)):
            yield Found(path, lease, locked)


def _is_locked(path: Path) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _refusal(found: Found, me: Lease) -> UserError:
    directory = found.path.parents[1]
    if found.lease is None:
        return UserError(
            f"{directory}: another process works on this run, and its lease {found.path} cannot "
            "be read; wait for it or end it"
        )
    common = sorted(set(found.lease.pieces) & set(me.pieces))
    what = "this run" if RUN in common else f"{common[0]} of this run"
    return UserError(
        f"{directory}: another process works on {what} ({found.lease}); wait for it or end it"
    )


def _outlive(found: Found, me: Lease, lease_s: float) -> None:
    """Returns once the lease has run out, and is removed. Raises UserError when its owner lives.
    Ages are by the file system's clock.
    """
    if found.locked:
        raise _refusal(found, me)
    path, probe = found.path, found.path.with_name(f"clock.{os.getpid()}")
    who = found.lease or "nobody knows whom (it cannot be read)"
    log(f"{path}: held by {who}; taken over if it is not renewed in {lease_s:.0f} s")
    try:
        first = path.stat().st_mtime
        while True:
            probe.touch()
            renewed = path.stat().st_mtime
            if renewed != first:
                raise _refusal(found, me)
            if probe.stat().st_mtime - renewed > lease_s:
                return path.unlink()
            time.sleep(lease_s / RENEWALS / 4)
    except FileNotFoundError:  # given back, or removed just now
        return
    finally:
        probe.unlink(missing_ok=True)


def _renew(path: Path, every_s: float, ended: threading.Event) -> None:
    """Also finds out when somebody has taken over (this node was cut off for long): then this
    process must end.
    """
    while not ended.wait(every_s):
        try:
            os.utime(path)
        except FileNotFoundError:
            print(f"error: {path}: gone, so taken over; ending this process", flush=True)
            os.kill(os.getpid(), TAKEN_OVER)
            if not ended.wait(ENDING_S):  # its main thread waits for other ranks
                os._exit(130)
            return
        except OSError:  # a file system that is away for a moment; the lease may then run out
            continue
