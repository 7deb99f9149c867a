"""Where a training goes on: from the newest checkpoint, or the line names the one before it."""

import shutil

import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.training.checkpoint import TrainState
from abscot.training.record import TrainLog
from abscot.training.resume import newest
from kit.synthetic_run import step_entry, train_log_meta


@pytest.fixture
def saved(tmp_path):
    """(directory of checkpoints at steps 3 and 6, log of 8 steps)."""
    for step in (3, 6):
        state = TrainState(step=step, epoch=0, tokens=9, plan_hash="plan", world_size=2)
        with files.publish(tmp_path / "x" / f"step_{step:07}", state.model_dump()) as temp:
            (temp / "rank_00000_000.safetensors").write_bytes(b"state")
    log = tmp_path / "log.json"
    write_log(log, 8)
    return tmp_path / "x", log


def write_log(path, steps: int, plan_hash: str = "plan") -> None:
    entries = [step_entry(step) for step in range(steps)]
    TrainLog(meta=train_log_meta(plan_hash=plan_hash), steps=entries).write(path)


def test_the_newest_is_taken_and_none_where_there_is_none(saved, tmp_path):
    directory, log = saved
    assert newest(directory, "plan", log).name == "step_0000006"
    assert newest(tmp_path / "nowhere", "plan", log) is None


def test_one_of_another_plan_is_refused(saved):
    with pytest.raises(
        UserError, match="other data or batch settings .*; delete .*/x to start over"
    ):
        newest(saved[0], "other", saved[1])


def test_a_damaged_one_is_named_with_the_one_before_it(saved):
    directory, log = saved
    (directory / "step_0000006" / "rank_00000_000.safetensors").write_bytes(b"stats")
    with pytest.raises(UserError, match="delete .*/step_0000006, to go on from step_0000003"):
        newest(directory, "plan", log)
    shutil.rmtree(directory / "step_0000006")
    assert newest(directory, "plan", log).name == "step_0000003"
    (directory / "step_0000003" / files.DONE).write_text("")
    with pytest.raises(UserError, match="delete .*/step_0000003, to start the training over"):
        newest(directory, "plan", log)


def test_a_log_that_lost_steps_is_named_with_the_newest_checkpoint_that_it_covers(saved):
    directory, log = saved
    write_log(log, 5)
    with pytest.raises(
        UserError, match="holds 5 of the 6 .*delete .*/step_0000006, to go on from step_0000003"
    ):
        newest(directory, "plan", log)
    shutil.rmtree(directory / "step_0000006")
    assert newest(directory, "plan", log).name == "step_0000003"
    log.unlink()
    with pytest.raises(UserError, match="log.json: No such file .*to start the training over"):
        newest(directory, "plan", log)
