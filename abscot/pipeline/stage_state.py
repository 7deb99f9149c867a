"""logs/STAGE.json: what is known of the last attempt at a stage."""

import datetime
import socket
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from abscot.common.record import Record
from abscot.pipeline.launchers import job_id, job_restarts
from abscot.recipe.run import Run


def _is_moment(text: str) -> str:
    if datetime.datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("expected a time with its zone")
    return text


Moment = Annotated[str, pydantic.AfterValidator(_is_moment)]


class StageState(Record):
    """state: running until it ends as done, stopped (asked to), crashed (need not happen again) or
    failed (would). started, ended: ISO 8601, UTC. pid: while it runs, on `host`. crashes: in a row,
    each soon after its start or hung. attempt: from 1.
    """

    state: Literal["running", "done", "stopped", "crashed", "failed"]
    started: Moment
    ended: Moment | None
    pid: Annotated[int, pydantic.Field(gt=0, lt=1 << 31)] | None
    host: str
    job_id: str | None
    restarts: pydantic.NonNegativeInt
    error: str | None
    attempt: pydantic.PositiveInt
    crashes: pydantic.NonNegativeInt
    command: list[str]

    @classmethod
    def file(cls, run: Run, stage: str) -> Path:
        return run.logs / f"{stage}.json"

    @classmethod
    def last(cls, run: Run, stage: str) -> "StageState | None":
        """What is known of a stage; None where it was never started. Raises UserError."""
        path = cls.file(run, stage)
        return cls.read(path, "delete it") if path.exists() else None

    @classmethod
    def begun(cls, before: "StageState | None", command: list[str], pid: int) -> "StageState":
        """An attempt that begins now, in a process of this host."""
        return cls(
            state="running",
            started=now(),
            ended=None,
            pid=pid,
            host=socket.gethostname(),
            job_id=job_id(),
            restarts=job_restarts(),
            error=None,
            attempt=before.attempt + 1 if before else 1,
            crashes=before.crashes if before else 0,
            command=command,
        )

    def finished(self, state: str, crashes: int, error: str | None) -> "StageState":
        """This attempt, ended now."""
        end = {"state": state, "ended": now(), "pid": None, "crashes": crashes, "error": error}
        return self.model_copy(update=end)

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far."""
        end = datetime.datetime.fromisoformat(self.ended or now())
        return (end - datetime.datetime.fromisoformat(self.started)).total_seconds()


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
