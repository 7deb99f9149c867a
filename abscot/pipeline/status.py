"""Where a run stands, on one screen, from its files: rounds x stages, what runs, what failed and
why.
"""

import dataclasses
import os
import socket
import time
from pathlib import Path

from abscot.common.log import SHOWN, format_s
from abscot.common.table import Table
from abscot.pipeline.stage_state import StageState
from abscot.pipeline.stages import Stage, stages_of
from abscot.recipe.run import Run, open_run
from abscot.training.record import TrainLog

TAIL_BYTES = 65_536
SHOWN_STATES = ("running", "stopped", "crashed", "failed")
SILENT_S = 600  # a running stage whose log is older than this may hang


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """state: done | running | stopped (its process is gone) | crashed | failed | ready |
    waiting.
    """

    stage: Stage
    state: str
    seconds: float | None = None  # how long it took, so far
    detail: str = ""  # of a running stage its last words, of a failed one its error


def screen(root: Path | str) -> str:
    """The status of the run at `root` as text. Raises UserError for a directory that is no run."""
    run, recipe = open_run(root)
    statuses = [stage_status(run, stage) for stage in stages_of(recipe)]
    done = sum(s.state == "done" for s in statuses)
    before, after = ([s for s in statuses if bool(s.stage.round) is late] for late in (False, True))
    parts = [
        f"{root}: {done} of {len(statuses)} stages done",
        _grid(before).text(),
        _grid(after).text(),
    ]
    details = [_detail(run, s) for s in statuses if s.state in SHOWN_STATES]
    ready = next((s for s in statuses if s.state == "ready"), None)
    if ready and not any(s.state == "running" for s in statuses):
        details.append(
            f"next     {ready.stage.name}: python launch/round.py --recipe {run.config} --round all"
        )
    if details:
        parts.append("\n".join(details))
    return "\n\n".join(parts)


def stage_status(run: Run, stage: Stage) -> StageStatus:
    """What the outputs of a stage and its logs/NAME.json say; outputs that are there have the last
    word.
    """
    known = StageState.last(run, stage.name)
    if stage.done():
        seconds = known.seconds if known else None
        return StageStatus(stage, "done", seconds, _train_summary(stage))
    if known is None or known.state == "done":  # done once, and its outputs removed since
        return StageStatus(stage, "waiting" if stage.missing_inputs() else "ready")
    if known.state in ("failed", "crashed"):
        return StageStatus(stage, known.state, known.seconds, known.error)
    here = known.host == socket.gethostname() and known.pid is not None
    if known.state == "stopped" or here and not _alive(known.pid):
        return StageStatus(stage, "stopped", None, _last_words(run, stage))
    return StageStatus(stage, "running", known.seconds, _last_words(run, stage))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, so it is there
        return True
    return True


def _last_words(run: Run, stage: Stage) -> str:
    """The last progress line of a stage's log: done and total, rate, time left, loss."""
    path = run.logs / f"{stage.name}.log"
    if not path.is_file():
        return ""
    with open(path, "rb") as log:
        log.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = log.read().decode(errors="replace").splitlines()
    return next(
        (line.removeprefix(SHOWN) for line in reversed(lines) if line.startswith(SHOWN)), ""
    )


def _train_summary(stage: Stage) -> str:
    """The last loss of a trained phase, and its channel, with the steps where it ended it."""
    if stage.kind != "train" or not stage.training.train_log.is_file():
        return ""
    content = TrainLog.read(stage.training.train_log)
    says = [f"loss {entry.loss:.3f}" for entry in content.steps[-1:]]
    says += [f"channel {entry.channel:.2f}" for entry in content.channel[-1:]]
    says += [f"{content.steps_text} steps"] * (content.end < content.meta.num_steps)
    return ", ".join(says)


def _grid(statuses: list[StageStatus]) -> Table:
    """A row per round, a column per kind of stage."""
    cells = {(s.stage.round, _kind(s.stage)): _cell(s) for s in statuses}
    kinds, numbers = (list(dict.fromkeys(key[i] for key in cells)) for i in (1, 0))
    rows = tuple((str(n), *(cells.get((n, kind), "") for kind in kinds)) for n in numbers)
    return Table(("round", *kinds), rows, 1 + len(kinds))


def _kind(stage: Stage) -> str:
    """`train A`, `evaluate`: its column."""
    return f"{stage.kind} {stage.training.phase.name}" if stage.training else stage.kind


def _cell(status: StageStatus) -> str:
    time_taken = (
        format_s(status.seconds)
        if status.state in ("done", "running") and status.seconds is not None
        else ""
    )
    loss = status.detail if status.state == "done" else ""
    return " ".join(filter(None, (status.state, time_taken, loss)))


def _detail(run: Run, status: StageStatus) -> str:
    """A line on a stage that runs, or ended without being done."""
    known = StageState.last(run, status.stage.name)
    log = run.logs / f"{status.stage.name}.log"
    who = [f"attempt {known.attempt}", f"pid {known.pid} on {known.host}"]
    who += [f"job {known.job_id}, {known.restarts} restarts"] if known.job_id else []
    notes = [status.detail or "no word yet"]
    if status.state == "running":
        silent_s = time.time() - log.stat().st_mtime if log.is_file() else 0
        notes += [f"silent for {format_s(silent_s)}: hung?"] if silent_s > SILENT_S else []
    if status.state == "stopped":
        notes.append("its process is gone; the same command goes on from here")
    if status.state == "crashed":
        notes.append(f"{known.crashes} in a row; the same command goes on from here")
    if status.state != "running":
        notes.append(f"log: {log}")
    return f"{status.state:<8} {status.stage.name}: {'; '.join(notes)}  ({', '.join(who)})"
