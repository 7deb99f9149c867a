"""Lines and progress bars of rank 0."""

import sys
import time

from abscot.common.ranks import rank

SHOWN = (
    "· "  # begins the lines that are for the user; the rest of a stage's output stays in its log
)


def log(message: str) -> None:
    """A plain line from rank 0; its mark tells launch/round.py to show it among the engines' own
    output.
    """
    if rank() == 0:
        print(f"{SHOWN}{message}", flush=True)


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
        """Units per second since this process began; what an earlier one did does not count."""
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
            f"{format_s(time.monotonic() - self.start)}{'  ' + note if note else ''}"
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
