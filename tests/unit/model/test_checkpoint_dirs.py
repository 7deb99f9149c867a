"""Which checkpoint is kept for a published model, and when it goes."""

import multiprocessing

import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.method.lineage import training_of
from abscot.model import checkpoint_dirs
from abscot.model.handover import Probe, agree
from abscot.pipeline.stages import train_stage
from abscot.recipe.load import dump
from abscot.recipe.run import Run
from kit.tiny_run import EXPORT_META, tiny_recipe

PROBE = Probe(tokens=[5, 6, 7], surprisals=[0.5, 1.0])
AGREES, DIFFERS = [0.51, 1.01], [0.5, 1.5]


@pytest.fixture(params=[("A", 1), ("B", 1), ("B", 2), ("pause", 1)], ids=str)
def training(request, tmp_path):
    """Of a phase inside a round, of a round's end, of the run's, and a baseline: its model is
    published after step 20.
    """
    recipe = tiny_recipe(tmp_path)
    run = Run.of(recipe)
    run.root.mkdir()
    run.config.write_text(dump(recipe))
    training = training_of(recipe, run, *request.param)
    meta = EXPORT_META.model_copy(update={"tag": training.tag, "step": 20, "probe": PROBE})
    with files.publish(training.export, meta.model_dump(exclude_none=True)):
        pass
    for step in (10, 20):
        make(training.checkpoints, step)
    checkpoint_dirs.clear(training.checkpoints, keep=1)
    return training


def make(directory, step: int):
    path = checkpoint_dirs.at_step(directory, step)
    path.mkdir(parents=True)
    (path / "rank_00000_000.safetensors").write_bytes(b"weights")
    return path


def left(training) -> list[str]:
    return [path.name for path in checkpoint_dirs.checkpoints(training.checkpoints)]


def test_the_newest_is_kept_until_an_engine_agrees(training):
    assert left(training) == ["step_0000020"] and train_stage(training).checkpoints_left() == []
    with pytest.raises(UserError) as refused:
        agree(training.export, PROBE, DIFFERS, most_kl=0.015)
    kept = training.checkpoints / "step_0000020"
    assert "inference.handover_kl is 0.015" in str(refused.value)
    assert f"delete {training.export}: its training then exports it again from {kept}" in str(
        refused.value
    )
    assert left(training) == ["step_0000020"]
    agree(training.export, PROBE, DIFFERS, most_kl=0.1)
    assert left(training) == []
    agree(training.export, PROBE, AGREES, most_kl=0.015)  # the next engine


def test_many_engines_agree_at_the_same_time(training):
    with multiprocessing.get_context("fork").Pool(8) as pool:
        arguments = [(training.export, PROBE, AGREES, 0.015)] * 16
        pool.starmap(agree, arguments, chunksize=1)
    assert list(training.checkpoints.glob("*step_*")) == []


def test_what_is_not_its_own_stays(training, tmp_path):
    """A model on its way, a copy elsewhere, and a training that goes on."""
    for copy in (training.intermediate(20), tmp_path / "elsewhere"):
        with files.publish(copy, files.read_done(training.export)):
            pass
        agree(copy, PROBE, AGREES, 0.015)
    make(training.checkpoints, 30)
    agree(training.export, PROBE, AGREES, 0.015)
    assert left(training) == ["step_0000020", "step_0000030"]


@pytest.mark.parametrize("tag", ["..", "../../x", "", ".", "/tmp"])
def test_a_tag_leads_nowhere_else(training, tag):
    meta = {**files.read_done(training.export), "tag": tag}
    files.seal(training.export, meta)
    make(training.run.root / "checkpoints", 20)
    make(training.run.root, 20)
    assert checkpoint_dirs.kept_for(training.export) is None
