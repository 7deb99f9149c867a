"""Runs stages one after the other as processes of their own, each with a log and a state file."""

import collections
import contextlib
import datetime
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from abscot import dist, paths
from abscot.config import Recipe, UserError
from abscot.paths import Run
from abscot.rounds import Stage, maker_of

PARENT = "ABSCOT_PARENT_PID"


def run_stages(recipe: Recipe, plan: list[Stage]) -> None:
    """Runs what is not done, in order. Raises UserError where an input is missing or a stage fails.

    SIGUSR1 ends it: with exit code 75, as soon as the stage that runs has saved what it must not lose.
    """
    _check_inputs(recipe, plan)
    run, stop = paths.claim(recipe), StopRequest()
    with exclusive(run):
        for number, stage in enumerate(plan, 1):
            label = f"[{number}/{len(plan)}] {stage.name}"
            if stage.done():
                print(f"{label}: done before", flush=True)
                continue
            if stop.asked:
                raise SystemExit(dist.REQUEUE)
            print(f"{label} ..", flush=True)
            seconds = run_stage(run, stage, stop)
            print(f"{label}: done in {dist.format_s(seconds)}", flush=True)


def _check_inputs(recipe: Recipe, plan: list[Stage]) -> None:
    """Raises UserError, before anything is written, for an input that neither exists nor is made by `plan`."""
    made = {path for stage in plan for path in stage.outputs}
    for stage in plan:
        for path in stage.missing_inputs():
            if not stage.done() and path not in made:
                raise UserError(f"{stage.name}: {path} is missing; make it with: {maker_of(recipe, path)}")


@contextlib.contextmanager
def exclusive(run: Run):
    """One writer a run directory. The lock is the process's own: it is free the moment the process dies."""
    run.root.mkdir(parents=True, exist_ok=True)
    with open(run.root / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"{run.root}: another process works on this run ({lock.read().strip()}); wait for it or end it") from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


class StopRequest:
    """SIGUSR1 asks for an end: the stage that runs is told, and no other is started.

    Training saves and exits with code 75; whatever else it reaches just ends, having kept its work piece by piece.
    """

    def __init__(self):
        self.asked, self.process = False, None
        signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, *_):
        self.asked = True
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGUSR1)  # srun hands it on to its tasks; a SIGTERM it would make a SIGKILL


def run_stage(run: Run, stage: Stage, stop: StopRequest) -> float:
    """Runs one stage to its end; returns its seconds.

    Raises UserError with its last error line, SystemExit(75) where it was asked to stop before its end.
    """
    run.logs.mkdir(exist_ok=True)
    state_file, log_file = run.logs / f"{stage.name}.json", run.logs / f"{stage.name}.log"
    command = stage.command(run.config, _free_port())
    state = {
        "state": "running", "started": _now(), "ended": None, "pid": None, "host": socket.gethostname(),
        "job_id": os.environ.get("SLURM_JOB_ID"), "error": None, "attempt": _attempt(state_file), "command": command,
    }
    start = time.monotonic()
    process = stop.process = subprocess.Popen(
        command, env=_environ(stage, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )
    paths.write_json_atomic(state_file, {**state, "pid": process.pid})
    try:
        tail = _tee(process, log_file)
        code = process.wait()
    finally:
        stop.process = None
        _end_group(process)
    failed = code != 0 or not stage.done()
    stopped = failed and (stop.asked or code == dist.REQUEUE)
    outcome = "stopped" if stopped else "failed" if failed else "done"
    state |= {"state": outcome, "ended": _now(), "error": _last_error(tail) if outcome == "failed" else None}
    paths.write_json_atomic(state_file, state)
    if stopped:
        print(f"{stage.name}: stopped; the same command goes on from here", flush=True)
        raise SystemExit(dist.REQUEUE)
    if failed:
        raise UserError(f"stage {stage.name} failed (exit {code}): {state['error']}; its log: {log_file}")
    return time.monotonic() - start


def _environ(stage: Stage, command: list[str]) -> dict[str, str]:
    """A plain process must not inherit ranks (vllm#1865); a rank gets its own from its launcher."""
    environ = {**dist.without_ranks(dict(os.environ)), PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    if command[0] == "srun":
        del environ[PARENT]  # not to be seen from other nodes; Slurm ends a step with its job
        if stage.ranks:
            environ |= {key: os.environ[key] for key in ("MASTER_ADDR", "MASTER_PORT") if key in os.environ}
    return environ


def _tee(process, log_file) -> collections.deque:
    """Copies the stage's output into its log, and its own lines to the terminal. Returns the last lines."""
    tail = collections.deque(maxlen=200)
    with open(log_file, "a", encoding="utf-8") as log:
        log.write(f"--- {_now()} {' '.join(process.args)}\n")
        for line in process.stdout:
            log.write(line)
            log.flush()
            tail.append(line.rstrip())
            if line.startswith(dist.SHOWN):
                print(f"    {line[len(dist.SHOWN):].rstrip()}", flush=True)
    return tail


def _last_error(tail) -> str:
    """The line that says most: the last one that names an error, else the last one."""
    named = [line for line in tail if "rror:" in line and "subprocess" not in line and "[launch.py" not in line]
    return (named or [line for line in tail if line] or ["no output"])[-1].strip()


def _end_group(process) -> None:
    """Ends the stage and everything it started, also when this process is interrupted."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def die_with_parent() -> None:
    """Ends this process when the runner that started it is gone: a killed run must leave no second writer."""
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


def _attempt(state_file) -> int:
    import json

    return json.loads(state_file.read_text())["attempt"] + 1 if state_file.is_file() else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def dry_run(recipe: Recipe, plan: list[Stage]) -> None:
    """Prints the stages: what is done, what they read and write, and their commands."""
    run = Run.of(recipe)
    for stage in plan:
        state = "done" if stage.done() else "ready" if not stage.missing_inputs() else "waits"
        print(f"{stage.name}  [{state}]")
        for title, names in (("in ", stage.inputs), ("out", stage.outputs)):
            for path in names:
                shown = path.relative_to(run.root) if path.is_relative_to(run.root) else path
                print(f"    {title}  {shown}")
        command = " ".join(stage.command(run.config))
        print(f"    run  {command.replace(sys.prefix + '/bin/', '')}")
