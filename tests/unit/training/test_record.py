"""The train log, and what those who watch are told."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from abscot.common.errors import UserError
from abscot.recipe.run import Run
from abscot.training.record import StepLog, Trackers, TrainLog
from kit.synthetic_run import channel_entry, step_entry, train_log_meta
from kit.tiny_run import tiny_recipe


def test_a_hosted_tracker_is_told_the_recipe_without_its_credentials(tmp_path, monkeypatch):
    told = {}
    session = SimpleNamespace(log=None, finish=None)
    library = SimpleNamespace(init=lambda **options: told.update(options) or session)
    monkeypatch.setitem(sys.modules, "trackio", library)
    recipe = tiny_recipe(tmp_path)
    config = replace(recipe.eval, judge_url="https://ann:s3cret@judge/v1?key=t0ken")
    recipe = replace(recipe, trackers=["trackio"], eval=config)
    nothing = TrainLog(meta=train_log_meta(), steps=[])
    Trackers(recipe, Run.of(recipe), "pi1_phaseA", nothing)
    assert told["config"]["eval"]["judge_url"] == "https://REDACTED@judge/v1?REDACTED"
    assert told["config"]["name"] == "tiny" and told["config"]["eval"]["samples"] == 1


def test_a_log_is_cut_back_to_the_step_that_a_training_goes_on_from(tmp_path):
    path, meta = tmp_path / "log.json", train_log_meta(plan_hash="plan")
    measured = [channel_entry(step, 0.1) for step in (1, 3, 5, 7)]
    TrainLog(meta=meta, steps=[step_entry(k) for k in range(8)], channel=measured).write(path)
    log = StepLog(path, 5, meta)
    log.add(step_entry(5, loss=0.5))
    log.add(channel_entry(5, 0.9))
    log.flush()
    content = TrainLog.read(path)
    assert [entry.step for entry in content.steps] == list(range(6))
    assert content.steps[5].loss == 0.5
    assert [(e.step, e.channel) for e in content.channel] == [(1, 0.1), (3, 0.1), (5, 0.9)]
    assert StepLog(path, 0, meta).content.steps == []


def test_a_training_is_whole_where_its_channel_opened_or_its_plan_ends():
    def log(steps: int, *channel: float, **meta) -> TrainLog:
        measured = [channel_entry(10 * k + 9, share) for k, share in enumerate(channel)]
        meta = train_log_meta(num_steps=30, epochs=4, until_channel=0.9, **meta)
        return TrainLog(meta=meta, steps=[step_entry(k) for k in range(steps)], channel=measured)

    assert log(30, 0.1, 0.5, 0.8).end == 30
    assert log(20, 0.1, 0.9).end == 20 and log(20, 0.1, 0.9).steps_text == "20 of 30"
    closed = log(30, 0.1, 0.5, 0.8).closed_channel("round 1 A")
    assert closed == "round 1 A: channel 0.80 of 0.90 after all 4 epochs"
    assert log(20, 0.1, 0.5).closed_channel("round 1 A") is None  # it goes on
    assert log(20, 0.1, 0.9).closed_channel("round 1 A") is None
    unasked = log(30, 0.1).model_copy(update={"meta": train_log_meta(num_steps=30)})
    assert unasked.end == 30 and unasked.closed_channel("round 1 A") is None


def test_tensorboard_shows_the_channel_at_its_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, run = tiny_recipe(tmp_path), Run(tmp_path / "run")
    before = TrainLog(
        meta=train_log_meta(), steps=[step_entry(0)], channel=[channel_entry(0, 0.25)]
    )
    curves = Trackers(recipe, run, "pi1_phaseA", before)
    curves.log(channel_entry(1, 0.5))
    curves.close()
    shown = EventAccumulator(str(run.tensorboard / "pi1_phaseA")).Reload()
    points = [(point.step, point.value) for point in shown.Scalars("train/channel")]
    assert points == [(0, 0.25), (1, 0.5)]


def test_a_directory_where_the_log_goes_is_named_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="a directory where the train log goes; remove it"):
        StepLog(tmp_path, 0, train_log_meta())
