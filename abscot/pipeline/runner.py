"""Runs stages one after the other as processes of their own, each with a log and a state file."""

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

from abscot.common.disk import naming
from abscot.common.errors import NEEDS_A_PERSON, REQUEUE, StageCrashed, UserError
from abscot.common.log import SHOWN, format_s
from abscot.common.process import StopRequest, free_port
from abscot.pipeline.launchers import LAUNCHERS_WORDS
from abscot.pipeline.lease import claimed
from abscot.pipeline.stage_state import StageState, now
from abscot.pipeline.stages import Stage, maker_of
from abscot.recipe.run import Run, claim
from abscot.recipe.schema import Recipe

MAX_CRASHES = 3  # of a stage, each soon after its start or hung: then it needs a person too
SOON_S = 1800


def run_stages(recipe: Recipe, stages: list[Stage]) -> None:
    """Runs what is not done, in order. Raises UserError where an input is missing or a stage fails
    for good, StageCrashed where the same command may go on.

    SIGUSR1 ends it: with exit code 75, as soon as the stage that runs has saved what it must not
    lose.
    """
    _check_inputs(recipe, stages)
    stop = ForwardedStop()
    with claimed(recipe) as run:
        for number, stage in enumerate(stages, 1):
            label = f"[{number}/{len(stages)}] {stage.name}"
            if stage.done():
                print(f"{label}: done before", flush=True)
                continue
            if stop.asked:
                raise SystemExit(REQUEUE)
            print(f"{label} ..", flush=True)
            claim(recipe)  # the stage reads it; an evaluation beside this may have left its own
            seconds = run_stage(run, stage, stop, recipe.hang_minutes)
            print(f"{label}: done in {format_s(seconds)}", flush=True)


def _check_inputs(recipe: Recipe, stages: list[Stage]) -> None:
    """Raises UserError, before anything is written, for an input that neither exists nor is made by
    `stages`.
    """
    made = {path for stage in stages for path in stage.outputs}
    for stage in stages:
        for path in stage.missing_inputs():
            if not stage.done() and path not in made:
                raise UserError(
                    f"{stage.name}: {path} is missing; make it with: {maker_of(recipe, path)}"
                )


class ForwardedStop(StopRequest):
    """SIGUSR1 asks for an end: the stage that runs is told, and no other is started.

    Training saves and exits with code 75; whatever else it reaches just ends, having kept its work
    piece by piece.
    """

    def __init__(self):
        self.process = None
        super().__init__(signal.SIGUSR1)

    def ask(self, *_) -> None:
        super().ask()
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            # srun hands it on to its tasks; a SIGTERM it would make a SIGKILL.
            os.killpg(self.process.pid, signal.SIGUSR1)


def run_stage(run: Run, stage: Stage, stop: ForwardedStop, hang_minutes: float) -> float:
    """Runs one stage to its end; returns its seconds.

    Raises UserError with its last error line where it would fail again, StageCrashed where it need
    not, SystemExit(75) where it was asked to stop before its end.
    """
    run.logs.mkdir(exist_ok=True)
    state_file, log_file = StageState.file(run, stage.name), run.logs / f"{stage.name}.log"
    before = StageState.last(run, stage.name)
    start = time.monotonic()
    process = stop.process = _start(stage, run)
    state = StageState.begun(before, process.args, process.pid)
    state.write(state_file)
    try:
        with Watchdog(process, 60 * hang_minutes) as watchdog:
            tail = _tee(process, log_file, watchdog)
            code = process.wait()
    finally:
        stop.process = None
        _end_group(process)
    seconds = time.monotonic() - start
    outcome = _outcome(code != 0 or not stage.done(), code, stop.asked)
    error = last_error(tail) if outcome in ("failed", "crashed") else None
    if error and watchdog.fired:
        error = f"printed nothing for {hang_minutes:g} minutes (hang_minutes)"
    crashes = 0
    if outcome == "crashed":
        crashes = state.crashes + 1 if seconds < SOON_S or watchdog.fired else 1
    state.finished(outcome, crashes, error).write(state_file)
    _raise_unless_done(stage, outcome, crashes, f"(exit {code}): {error}; its log: {log_file}")
    return seconds


def _start(stage: Stage, run: Run) -> subprocess.Popen:
    """The stage's process, in a group of its own."""
    command = stage.launch.command(run.config, free_port())
    return subprocess.Popen(
        command,
        env=stage.launch.environment(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def _raise_unless_done(stage: Stage, outcome: str, crashes: int, what: str) -> None:
    if outcome == "stopped":
        print(f"{stage.name}: stopped; the same command goes on from here", flush=True)
        raise SystemExit(REQUEUE)
    if outcome == "failed" or crashes >= MAX_CRASHES:
        often = f"crashed {crashes} times in a row" if crashes else "failed"
        raise UserError(f"stage {stage.name} {often} {what}")
    if outcome == "crashed":
        raise StageCrashed(
            f"stage {stage.name} crashed {what}; the same command goes on from there"
        )


def _outcome(failed: bool, code: int, stop_asked: bool) -> str:
    """done | stopped (asked to) | failed (would fail again) | crashed (need not)."""
    if not failed:
        return "done"
    if stop_asked or code == REQUEUE:
        return "stopped"
    return "failed" if code in (0, NEEDS_A_PERSON) else "crashed"


class Watchdog:
    """Ends a stage that has printed nothing for `limit_s`: ranks that wait for each other
    for ever.
    """

    def __init__(self, process: subprocess.Popen, limit_s: float):
        self.process, self.limit_s, self.fired = process, limit_s, False
        self._ended = threading.Event()

    def __enter__(self):
        self.seen()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def seen(self) -> None:
        self.seen_s = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(min(5.0, self.limit_s / 4)):
            if time.monotonic() - self.seen_s > self.limit_s:
                self.fired = True
                _end_group(self.process)
                return


def _tee(process, log_file, watchdog: Watchdog) -> collections.deque:
    """Copies the stage's output into its log, and its own lines to the terminal. Returns the last
    lines.
    """
    tail = collections.deque(maxlen=200)
    with naming(log_file), open(log_file, "a", encoding="utf-8") as log:
        log.write(f"--- {now()} {' '.join(process.args)}\n")
        for line in process.stdout:
            watchdog.seen()
            log.write(line)
            log.flush()
            tail.append(line.rstrip())
            if line.startswith(SHOWN):
                print(f"    {line[len(SHOWN) :].rstrip()}", flush=True)
    return tail


def last_error(tail) -> str:
    """The line that says most: the last one that names an error, else the last one."""
    named = [
        line
        for line in tail
        if "rror:" in line and not any(word in line for word in LAUNCHERS_WORDS)
    ]
    return (named or [line for line in tail if any(map(str.isalnum, line))] or ["no output"])[
        -1
    ].strip()


def _end_group(process) -> None:
    """Ends the stage and everything it started, also when this process is interrupted."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def dry_run(recipe: Recipe, stages: list[Stage], walltimes: dict[str, str] | None = None) -> None:
    """Prints the stages: what is done, what they read and write, how long they may take, and their
    commands.
    """
    run = Run.of(recipe)
    for stage in stages:
        state = "done" if stage.done() else "ready" if not stage.missing_inputs() else "waits"
        print(f"{stage.name}  [{state}]")
        for title, names in (("in ", stage.inputs), ("out", stage.outputs)):
            for path in names:
                shown = path.relative_to(run.root) if path.is_relative_to(run.root) else path
                print(f"    {title}  {shown}")
        if walltimes and stage.name in walltimes:
            print(
                "    for  "
                f"{walltimes[stage.name]}{_checkpoints(recipe) if stage.launch.ranks else ''}"
            )
        command = " ".join(stage.launch.command(run.config))
        print(f"    run  {command.replace(sys.prefix + '/bin/', '')}")


def _checkpoints(recipe: Recipe) -> str:
    every = {
        "steps": recipe.train.checkpoint_every_steps,
        "minutes": recipe.train.checkpoint_every_minutes,
    }
    named = " or ".join(f"{n:g} {unit}" for unit, n in every.items() if n)
    return f"; a checkpoint every {named}" if named else ""
