"""The status screen of runs in every state, from files alone."""

import datetime
import os
import re
import shutil
import subprocess
import sys

import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.pipeline import status
from abscot.pipeline.stage_state import StageState
from abscot.pipeline.stages import Stage, stages_of
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run, claim
from abscot.training.record import TrainLog
from kit.synthetic_run import add_results, channel_entry, step_entry, train_log_meta


@pytest.fixture
def run(tmp_path) -> Run:
    return claim(load_recipe(None, [f"run_root={tmp_path}", "name=r", "rounds=2"]))


def stages(run: Run) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages_of(load_recipe(run.config))}


def finish(run: Run, *names: str) -> None:
    for name in names:
        for output in stages(run)[name].outputs:
            if output.suffix:
                mode, model, benchmark = output.name.removesuffix(".meta.json").rsplit("_", 2)
                add_results(run, mode, model, benchmark, 0, problems=3)
            else:
                output.mkdir(parents=True)
                files.seal(output)
        note(run, name, "done", started_s=75, ended=True)


def note(run: Run, name: str, state: str, started_s: float, ended: bool = False, **more) -> None:
    now = datetime.datetime.now(datetime.UTC)
    known = {
        "state": state,
        "started": (now - datetime.timedelta(seconds=started_s)).isoformat(timespec="seconds"),
        "ended": now.isoformat(timespec="seconds") if ended else None,
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "job_id": None,
        "restarts": 0,
        "error": None,
        "attempt": 1,
        "crashes": 0,
        "command": ["true"],
        **more,
    }
    StageState(**known).write(StageState.file(run, name))


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_fresh_run_says_what_comes_next(run):
    text = status.screen(run.root)
    count = len(stages(run))
    assert f"0 of {count} stages done" in text
    assert re.search(r"next +world: python launch/round.py", text)
    assert text.count("waiting") == count - 1


def test_a_run_at_work_shows_progress_and_losses(run):
    finish(run, "world", "extend", "prepare", "evaluate_base", "codebook", "traces_pi1_phaseA")
    note(run, "train_pi1_phaseA", "running", started_s=30, job_id="17_1", attempt=2)
    line = (
        "train pi1_phaseA: 84/150 steps, 2.0 steps/s, 0:33 left  loss 1.2345  lr 1.00e-03  12,300 "
        "tokens/s"
    )
    (run.logs / "train_pi1_phaseA.log").write_text(
        f"--- start\n· an older word\n· {line}\n[rank0] engine noise\n"
    )
    text = status.screen(run.root)
    assert f"6 of {len(stages(run))} stages done" in text
    assert f"running  train_pi1_phaseA: {line}" in text
    assert "attempt 2" in text and "job 17_1" in text
    assert re.search(r"^round +codebook +traces A +train A +traces B", text, re.MULTILINE)
    # Grounded traces of B wait for no model, and round 2 is B alone.
    assert re.search(r"^1 +done 1:15 +done 1:15 +running 0:3\d +ready +wait", text, re.MULTILINE)
    assert re.search(r"^2 +ready +waiting +waiting$", text, re.MULTILINE)
    assert "next" not in text


def test_a_finished_phase_shows_its_last_loss(run):
    finish(run, "train_pi1_phaseA")
    steps = [step_entry(0, loss=2.0), step_entry(1, loss=0.4321)]
    TrainLog(meta=train_log_meta(), steps=steps).write(run.train_log("pi1_phaseA"))
    assert "done 1:15 loss 0.432" in status.screen(run.root)
    meta = train_log_meta(num_steps=9, until_channel=0.9)
    opened = TrainLog(meta=meta, steps=steps, channel=[channel_entry(1, 0.95)])
    opened.write(run.train_log("pi1_phaseA"))
    assert "done 1:15 loss 0.432, channel 0.95, 2 of 9 steps" in status.screen(run.root)


def test_a_failure_is_told_in_one_line_with_its_log(run):
    finish(run, "world")
    note(
        run,
        "extend",
        "failed",
        started_s=5,
        ended=True,
        error="RuntimeError: no space left on device",
    )
    line = next(line for line in status.screen(run.root).splitlines() if line.startswith("failed"))
    assert (
        "extend: RuntimeError: no space left on device" in line
        and str(run.logs / "extend.log") in line
    )


def test_a_killed_stage_is_not_called_running(run):
    note(run, "world", "running", started_s=500, pid=dead_pid())
    text = status.screen(run.root)
    assert "stopped  world" in text and "running" not in text


def test_a_stage_of_another_machine_is_believed_until_it_is_silent(run):
    note(run, "world", "running", started_s=5000, pid=dead_pid(), host="node7")
    log = run.logs / "world.log"
    log.write_text("· making problems: 10/4,000 rows\n")
    assert "hung?" not in status.screen(run.root)
    os.utime(log, (log.stat().st_atime, log.stat().st_mtime - 3600))
    assert "silent for 1:00:0" in status.screen(run.root)


def test_removed_outputs_count_more_than_an_old_note(run):
    finish(run, "world")
    shutil.rmtree(run.world)
    assert status.screen(run.root).startswith(f"{run.root}: 0 of ")


def test_a_result_that_lost_lines_is_not_done(run):
    finish(run, "world", "extend", "prepare", "evaluate_base")
    assert status.screen(run.root).startswith(f"{run.root}: 4 of ")
    rows = run.results / "thinking_base_world.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    assert status.screen(run.root).startswith(f"{run.root}: 3 of ")


def test_a_moved_run_is_read_where_it_is(run, tmp_path):
    finish(run, "world", "extend")
    moved = tmp_path / "elsewhere" / "copy"
    moved.parent.mkdir()
    run.root.rename(moved)
    assert status.screen(moved).startswith(f"{moved}: 2 of ")


def test_no_run_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no config.yaml"):
        status.screen(tmp_path)
    command = [sys.executable, str(ROOT / "launch" / "status.py"), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (
        ended.returncode == 2
        and ended.stderr.startswith("error: ")
        and ended.stderr.count("\n") == 1
    )


def test_the_script_runs_from_anywhere(run):
    ended = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "status.py"), run.root.name],
        cwd=run.root.parent,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0 and ended.stdout.startswith(f"{run.root.name}: 0 of ")


def test_a_baseline_of_the_run_has_columns_of_its_own(tmp_path):
    keys = [f"run_root={tmp_path}", "name=b", "rounds=1", "baselines=[pause]"]
    run = claim(load_recipe(None, keys))
    finish(run, "evaluate_final")
    lines = [line.split() for line in status.screen(run.root).splitlines() if line]
    head = max(number for number, words in enumerate(lines) if words[0] == "round")
    assert lines[head][-5:] == ["evaluate", "train", "pause", "evaluate", "pause"]
    assert lines[head + 2][-4:] == ["done", "1:15", "waiting", "waiting"]
