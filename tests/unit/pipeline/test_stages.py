"""Every shipped recipe plans its rounds."""

import pytest

from abscot.evaluation.grid import Grid
from abscot.method.lineage import trainings
from abscot.pipeline.stages import select, stages_of
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run
from kit.recipes import RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_plans_its_rounds(path, tmp_path):
    recipe = load_recipe(path, [f"run_root={tmp_path}"])
    names = [stage.name for stage in stages_of(recipe)]
    assert len(names) == len(set(names))
    order = [
        f"{kind}_{training.tag}"
        for training in trainings(recipe, Run.of(recipe))
        for kind in ("traces", "train")
    ]
    assert [name for name in names if name in order] == order
    made = set()
    for stage in stages_of(recipe):
        assert set(stage.inputs) <= made, f"{stage.name} reads what no stage before it makes"
        made |= set(stage.outputs)
    final = tmp_path / recipe.name / "final"
    assert final in made


@pytest.mark.parametrize(
    "keys, on_node, gpus",
    [
        ([], "8", 1),
        (["inference.tensor_parallel=4"], "8", 4),
        (["traces.shards=1"], "8", 0),
        ([], "0", 0),  # on CPUs the cores are one engine's
        (["traces.shards=2"], "0", 1),
    ],
)
def test_the_engines_of_a_job_take_all_its_gpus_unless_the_recipe_wants_one(
    tmp_path, monkeypatch, keys, on_node, gpus
):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", on_node)
    recipe = load_recipe(None, [f"run_root={tmp_path}", "schedule=paper", *keys])
    stage = next(stage for stage in stages_of(recipe) if stage.name == "traces_pi1_phaseB")
    assert stage.launch.gpus_per_engine == gpus


def test_the_baselines_of_a_run_are_trained_and_asked_with_its_last_round(tmp_path):
    keys = [f"run_root={tmp_path}", "rounds=2", "baselines=[pause, sft_no_cot]"]
    recipe = load_recipe(None, keys)
    names = [stage.name for stage in select(recipe, "2")]
    assert names[names.index("evaluate_final") + 1 :] == [
        "train_sft_no_cot",
        "evaluate_sft_no_cot",
        "train_pause",
        "evaluate_pause",
    ]
    assert not any("pause" in stage.name for r in "01" for stage in select(recipe, r))
    assert Grid.of(recipe, None).models == ["base", "round1", "final", "sft_no_cot", "pause"]
    none = load_recipe(None, [*keys, "train.phase_epochs={pause: 0}"])
    assert "train_pause" not in [stage.name for stage in stages_of(none)]
