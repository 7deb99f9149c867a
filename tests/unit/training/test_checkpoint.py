"""Checkpoints that are removed: of a training whose model is published, and under a kill."""

import shutil

import pytest

from abscot.common import files
from abscot.model import checkpoint_dirs
from abscot.pipeline.stages import train_stage
from abscot.recipe.run import Run
from abscot.training.train_phase import train
from kit.tiny_run import tiny_recipe, training_of


def make_checkpoint(directory, step: int):
    path = directory / f"step_{step:07}"
    path.mkdir(parents=True)
    (path / "rank_00000_000.safetensors").write_bytes(b"weights")
    files.seal(path)
    return path


def test_a_kill_between_publishing_and_clearing_leaves_the_newest_checkpoint_alone(tmp_path):
    """Each is twice or three times the model: the stage is not done before all but the one that is
    kept are gone, and the same command removes them without starting an engine.
    """
    recipe = tiny_recipe(tmp_path)
    training = training_of(recipe, Run.of(recipe), 1, "A")
    with files.publish(training.export):
        pass
    make_checkpoint(training.checkpoints, 19)
    checkpoint_dirs.hidden(make_checkpoint(training.checkpoints, 20)).mkdir()
    assert not train_stage(training).done()
    train(training)
    assert {path.name for path in training.checkpoints.iterdir()} == {"export", "step_0000020"}
    assert train_stage(training).done()


def test_a_kill_while_one_is_removed_leaves_nothing_damaged(tmp_path, monkeypatch):
    make_checkpoint(tmp_path, 1)

    def killed(path):
        next(path.glob("rank_*")).unlink()
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(shutil, "rmtree", killed)
        checkpoint_dirs.clear(tmp_path, keep=0)
    assert checkpoint_dirs.checkpoints(tmp_path) == []
    checkpoint_dirs.clear(tmp_path, keep=1)
    assert list(tmp_path.iterdir()) == []
