"""The train log, and what those who watch are told."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from abscot.common.errors import UserError
from abscot.recipe.run import Run
from abscot.training.record import StepLog, Trackers, TrainLog
from kit.synthetic_run import step_entry, train_log_meta
from kit.tiny_run import tiny_recipe


def test_a_hosted_tracker_is_told_the_recipe_without_its_credentials(tmp_path, monkeypatch):
    told = {}
    session = SimpleNamespace(log=None, finish=None)
    library = SimpleNamespace(init=lambda **options: told.update(options) or session)
    monkeypatch.setitem(sys.modules, "trackio", library)
    recipe = tiny_recipe(tmp_path)
    config = replace(recipe.eval, judge_url="https://ann:s3cret@judge/v1?key=t0ken")
    recipe = replace(recipe, trackers=["trackio"], eval=config)
    Trackers(recipe, Run.of(recipe), "pi1_phaseA", [])
    assert told["config"]["eval"]["judge_url"] == "https://REDACTED@judge/v1?REDACTED"
    assert told["config"]["name"] == "tiny" and told["config"]["eval"]["samples"] == 1


def test_a_log_is_cut_back_to_the_step_that_a_training_goes_on_from(tmp_path):
    path, meta = tmp_path / "log.json", train_log_meta(plan_hash="plan")
    TrainLog(meta=meta, steps=[step_entry(k) for k in range(8)]).write(path)
    log = StepLog(path, 5, meta)
    log.add(step_entry(5, loss=0.5))
    log.flush()
    steps = TrainLog.read(path).steps
    assert [entry.step for entry in steps] == list(range(6)) and steps[5].loss == 0.5
    assert StepLog(path, 0, meta).steps == []


def test_a_directory_where_the_log_goes_is_named_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="a directory where the train log goes; remove it"):
        StepLog(tmp_path, 0, train_log_meta())
