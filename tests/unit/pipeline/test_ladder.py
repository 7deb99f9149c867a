"""The ladder's runs and stages."""

import subprocess
import sys

import pytest

from abscot.method.phases import baselines
from abscot.pipeline.ladder import ladder_recipe, ladder_siblings, ladder_stages
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run
from kit.recipes import RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_stage_reads_what_a_stage_before_it_makes(path, tmp_path):
    recipe = ladder_recipe(load_recipe(path, [f"run_root={tmp_path}"]))
    for of_one_run in (recipe, *ladder_siblings(recipe)):
        plan, made = ladder_stages(of_one_run), set()
        assert len({stage.name for stage in plan}) == len(plan)
        for stage in plan:
            assert {p for p in stage.inputs if p != Run.of(of_one_run).codebook} <= made
            made |= set(stage.outputs)
        results = {path.name for path in made if path.suffix}
        for mode in ("abstract", "abstract_swapped", "abstract_permuted"):
            for benchmark in recipe.eval.benchmarks:
                assert f"{mode}_final_{benchmark}.meta.json" in results
        asked = {
            f"{p.asked_in}_{p.name}_{recipe.eval.benchmarks[0]}.meta.json" for p in baselines()
        }
        assert asked & results == (asked if of_one_run is recipe else set())


def test_the_channel_is_asked_where_a_phase_hides_the_cot_also_at_the_end_of_a_round(tmp_path):
    keys = ["train.phase_epochs={A: [1, 0], B: [0, 1]}", "rounds=2", f"run_root={tmp_path}"]
    stages = ladder_stages(ladder_recipe(load_recipe(None, keys)))
    (channel,) = [s for s in stages if any("channel" in p.name for p in s.outputs)]
    assert channel.launch.arguments[:4] == ("--model", "round1", "--mode", "channel")
    assert channel.name != "evaluate_round1"


def test_a_bare_name_is_a_shipped_recipe_and_a_dry_run_writes_nothing(tmp_path):
    arguments = ["--recipe", "tiny-cpu", "--dry-run", "--set", f"run_root={tmp_path / 'r'}"]
    command = [sys.executable, str(ROOT / "launch" / "ladder.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "epochs of sft_no_cot 6" in done.stdout
    own, beside = done.stdout.split("schedule; world, extend, prepare, evaluate_base: linked from ")
    assert "world.py" in own and "--phase pause" in own
    assert "world.py" not in beside and "--phase pause" not in beside
    for text in (own, beside):
        assert "--model pi1_phaseA" in text and "--model final" in text
    assert not (tmp_path / "r").exists()
