"""The MPI ranks of data preparation, or one process without MPI: shared errors, common progress."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from abscot.common.errors import UserError
from abscot.common.log import Progress

REPORT_EVERY_S = 1.0


class Ranks:
    """`rank` of `size`. MPI is imported only when a launcher started more than one process.

    An error on one rank ends the stage on all of them: the others finish what they are at, then
    raise it too. size, rank, local_size: what the launcher says (launchers.mpi_launch).
    """

    def __init__(self, size: int = 1, rank: int = 0, local_size: int = 1):
        self.rank, self.size, self._comm = 0, 1, None
        self._local_size = local_size
        if size > 1:
            # The launcher's own number first: only its rank 0 speaks even if MPI fails to start.
            os.environ["RANK"] = str(rank)
            from mpi4py import MPI

            self._comm = MPI.COMM_WORLD
            self.rank, self.size = self._comm.rank, self._comm.size
            if self.size != size:
                raise UserError(
                    f"{size} processes started, MPI sees {self.size}: use mpiexec or srun "
                    "--mpi=pmix"
                )
        self._stage = 0

    def cores(self) -> int:
        """CPU cores this rank may use without taking its neighbours'."""
        share = (os.cpu_count() or 1) // self._local_size
        return max(1, min(len(os.sched_getaffinity(0)), share))

    def first(self, function: Callable):
        """`function()` of rank 0, on every rank. Its UserError is raised on every rank."""
        result = error = None
        with self._fatal():
            if self.rank == 0:
                try:
                    result = function()
                except UserError as caught:
                    error = caught
        if self._comm:
            result, error = self._comm.bcast((result, error))
        if error:
            raise error
        return result

    def everyone(self, value) -> list:
        """The value of every rank, in the order of ranks."""
        return self._comm.allgather(value) if self._comm else [value]

    @contextlib.contextmanager
    def stage(self, progress: Progress) -> Iterator[Callable[..., None]]:
        """Work of which every rank does a share. Yields `report(n, rows=0)`: so much more is done.

        Raises on every rank the UserError of the lowest rank that had one.
        """
        self._stage += 1
        reporter = _Reporter(self._comm, self._stage, progress)
        error = None
        with self._fatal():
            try:
                yield reporter.report
            except UserError as caught:
                error = str(caught)
        if self._comm:
            arrived = self._comm.Ibarrier()
            while not arrived.Test():  # MPI's own barrier would take a whole core to wait
                reporter.listen()
                time.sleep(0.02)
            results = self._comm.allgather((error, reporter.mine))
            error = next((e for e, _ in results if e), None)
            reporter.counts = dict(enumerate(mine for _, mine in results))
        reporter.show()
        if error:
            raise UserError(error)
        progress.close(reporter.note())

    @contextlib.contextmanager
    def _fatal(self):
        """A bug on one rank must not leave the others waiting for it."""
        try:
            yield
        except Exception:
            if not self._comm:
                raise
            traceback.print_exc()
            sys.stderr.flush()
            self._comm.Abort(1)


class _Reporter:
    """Sums what the ranks finish, units of progress and rows: each tells rank 0 its counts once a
    second.
    """

    def __init__(self, comm, tag: int, progress: Progress):
        self.comm, self.tag, self.progress = comm, tag, progress
        self.rank = comm.rank if comm else 0
        self.mine = (0, 0)
        self.counts = {self.rank: self.mine}
        self._began = self._told = time.monotonic()

    def report(self, n: int, rows: int = 0) -> None:
        self.mine = (self.mine[0] + n, self.mine[1] + rows)
        if time.monotonic() - self._told < REPORT_EVERY_S:
            return
        self._told = time.monotonic()
        if self.rank:
            self.comm.send((self.rank, self.mine), dest=0, tag=self.tag)
        self.listen()

    def listen(self) -> None:
        """Rank 0 takes in the others' counts and shows the sum."""
        if self.rank:
            return
        while self.comm and self.comm.iprobe(tag=self.tag):
            rank, counts = self.comm.recv(tag=self.tag)
            self.counts[rank] = counts
        self.show()

    def show(self) -> None:
        self.counts[self.rank] = self.mine
        done = sum(n for n, _ in self.counts.values())
        self.progress.update(done - (self.progress.done - self.progress.first), self.note())

    def note(self) -> str:
        rows = sum(rows for _, rows in self.counts.values())
        rate = rows / max(time.monotonic() - self._began, 1e-3)
        return f"{rows:,} rows, {rate:,.0f} rows/s" if rows else ""
