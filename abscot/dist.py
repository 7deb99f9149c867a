"""Ranks as the launcher set them, rank-0 logging and progress; no engine is imported here."""

import os
import sys
import time
from typing import NamedTuple

from abscot.config import UserError

SHOWN = (
    "· "  # begins the lines that are for the user; the rest of a stage's output stays in its log
)
# Exit code of what was asked to stop and goes on when the same command is given again
# (EX_TEMPFAIL).
REQUEUE = 75
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Ranks on this machine; each launcher has its own name for it."""
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return world_size()


def cores_a_rank() -> int:
    """CPU cores of this rank: what Slurm gave it, or its share of the machine's."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(given) if given.isdigit() else max(1, (os.cpu_count() or 1) // local_world_size())


class Allocation(NamedTuple):
    """Nodes of a Slurm job, and the tasks that srun may start on them: one a GPU."""

    nodes: int
    tasks: int


def allocation() -> Allocation | None:
    """The Slurm job that this process may start tasks in; None outside one, in a job of one task
    and inside a task.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if "SLURM_JOB_ID" not in os.environ or "SLURM_STEP_ID" in os.environ or tasks < 2:
        return None
    return Allocation(int(os.environ.get("SLURM_JOB_NUM_NODES", "1")), tasks)


def take_ranks_from_slurm() -> None:
    """Under `srun` with a task a rank: RANK and the rest from Slurm's own variables. No ssh, no
    hostfile.
    """
    if "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
    }
    missing = [name for name in RANK_VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: not set; slurm/round.sbatch exports it from the job's first "
            "node before srun"
        )


def log(message: str) -> None:
    """A plain line from rank 0; its mark tells launch/round.py to show it among the engines' own
    output.
    """
    if rank() == 0:
        print(f"{SHOWN}{message}", flush=True)


def without_ranks(environ: dict[str, str]) -> dict[str, str]:
    """The environment for a process that must not join this one's process group."""
    return {key: value for key, value in environ.items() if key not in RANK_VARIABLES}


class Progress:
    """Progress of a long job with rate and time left: a bar on a terminal, a line every few seconds
    in a log.

    total None: the end is not known. `note` is free text behind the numbers, e.g. the loss.
    """

    def __init__(
        self, total: int | None, unit: str, label: str, done: int = 0, every_s: float = 10.0
    ):
        self.total, self.unit, self.label, self.every_s = total, unit, label, every_s
        self.done = self.first = done
        self.start = time.monotonic()
        self.last_line = self.start
        self.bar = _bar(label, total, done) if rank() == 0 and sys.stderr.isatty() else None

    def update(self, n: int = 1, note: str = "") -> None:
        self.done += n
        if rank() != 0:
            return
        if self.bar:
            self.bar.update(
                self.bar.task_ids[0],
                completed=self.done,
                note=f"{self.rate():,.1f} {self.unit}/s  {note}",
            )
        elif time.monotonic() - self.last_line >= self.every_s:
            self.last_line = time.monotonic()
            self.line(note)

    def rate(self) -> float:
        """Units a second since this process began; what an earlier one did does not count."""
        return (self.done - self.first) / max(time.monotonic() - self.start, 1e-9)

    def line(self, note: str = "") -> None:
        rate = self.rate()
        of = f"/{self.total:,}" if self.total is not None else ""
        left = (
            f", {format_s((self.total - self.done) / rate)} left"
            if self.total is not None and rate > 0
            else ""
        )
        log(
            f"{self.label}: {self.done:,}{of} {self.unit}, {rate:,.1f} "
            f"{self.unit}/s{left}{'  ' + note if note else ''}"
        )

    def close(self, note: str = "") -> None:
        if rank() != 0:
            return
        if self.bar:
            self.bar.stop()
        log(
            f"{self.label}: {self.done:,} {self.unit} done in "
            f"{format_s(time.monotonic() - self.start)}"
            f"{'  ' + note if note else ''}"
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        if error[0] is None:
            self.close()
        elif self.bar:
            self.bar.stop()


def _bar(label: str, total: int | None, done: int):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    bar.add_task(label, total=total, completed=done, note="")
    bar.start()
    return bar


def format_s(seconds: float) -> str:
    """93784 -> '1d 02:03:04'; 75 -> '1:15'."""
    seconds = int(seconds)
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
