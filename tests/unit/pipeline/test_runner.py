"""How a stage may end: done, stopped, crashed, failed for good; and what is known of it
afterwards.
"""

import json

import pytest

from abscot.common.errors import REQUEUE, StageCrashed, UserError
from abscot.pipeline import launchers, runner
from abscot.pipeline.launchers import Launch
from abscot.pipeline.runner import StopRequest
from abscot.pipeline.stages import Stage
from abscot.recipe.run import Run


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """Runs Python source as a stage; returns what the state file says afterwards."""
    monkeypatch.setattr(launchers, "LAUNCH", tmp_path)
    run = Run(tmp_path / "run")
    run.root.mkdir()
    stage = Stage("train_x", 1, (), (tmp_path / "out.json",), Launch("script.py"))

    def go(source: str, hang_minutes: float = 1.0) -> dict:
        (tmp_path / "script.py").write_text(source)
        runner.run_stage(run, stage, StopRequest(), hang_minutes)

    def state() -> dict:
        return json.loads((run.logs / "train_x.json").read_text())

    go.state = state
    go.done = f"open({str(tmp_path / 'out.json')!r}, 'w')"
    return go


def test_what_need_not_happen_again_may_be_tried_again(run_script):
    with pytest.raises(StageCrashed, match=r"crashed \(exit -9\): last words"):
        run_script("import os; print('last words', flush=True); os.kill(os.getpid(), 9)")
    assert run_script.state()["state"] == "crashed" and run_script.state()["crashes"] == 1
    run_script(run_script.done)
    assert run_script.state()["state"] == "done" and run_script.state()["crashes"] == 0
    assert run_script.state()["attempt"] == 2


def test_the_third_crash_in_a_row_needs_a_person(run_script):
    for _ in range(2):
        with pytest.raises(StageCrashed):
            run_script("1 / 0")
    with pytest.raises(UserError, match="crashed 3 times in a row .*ZeroDivisionError"):
        run_script("1 / 0")


def test_a_mistake_is_not_tried_again(run_script):
    with pytest.raises(UserError, match=r"failed \(exit 2\): error: no such key"):
        run_script("import sys; print('error: no such key'); sys.exit(2)")
    with pytest.raises(UserError, match=r"failed \(exit 0\)"):
        run_script("print('made nothing')")


def test_a_saved_and_stopped_stage_asks_to_be_queued_again(run_script):
    with pytest.raises(SystemExit) as ended:
        run_script(f"import sys; sys.exit({REQUEUE})")
    assert ended.value.code == REQUEUE and run_script.state()["state"] == "stopped"


def test_a_hung_stage_is_ended_and_counts_as_crashed(run_script):
    with pytest.raises(StageCrashed, match=r"printed nothing for 0.02 minutes \(hang_minutes\)"):
        run_script("import time; print('begun', flush=True); time.sleep(600)", hang_minutes=0.02)


def test_a_stage_that_hangs_each_time_needs_a_person_however_long_it_ran(run_script, monkeypatch):
    """A crash after hours is the first one in a row; a hang never is."""
    monkeypatch.setattr(runner, "SOON_S", 0.0)
    hangs = "import time; print('begun', flush=True); time.sleep(600)"
    for _ in range(2):
        with pytest.raises(StageCrashed):
            run_script("1 / 0")
        assert run_script.state()["crashes"] == 1
    with pytest.raises(StageCrashed):
        run_script(hangs, hang_minutes=0.02)
    with pytest.raises(UserError, match=r"crashed 3 times in a row .*\(hang_minutes\)"):
        run_script(hangs, hang_minutes=0.02)


def test_a_slow_stage_that_talks_is_not_hung(run_script):
    talk = "import time\nfor _ in range(8): print('.', flush=True); time.sleep(0.4)\n"
    run_script(talk + run_script.done, hang_minutes=0.02)


def test_the_error_that_is_shown_is_the_ranks_not_the_launchers():
    tail = [
        "[rank1]: OSError: /x/rank_00001_000.safetensors: No space left on device",
        "srun: error: n2: task 1: Exited",
        "",
    ]
    assert runner.last_error(tail) == tail[0]
    assert runner.last_error(["mpiexec has ended", "-" * 74]) == "mpiexec has ended"
