"""The ladder's stages."""

import subprocess
import sys

import pytest

from abscot.pipeline.ladder import ladder_recipe, ladder_stages
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run
from abscot.reporting.ladder import ladder_rows
from kit.recipes import RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_stage_reads_what_a_stage_before_it_makes(path, tmp_path):
    recipe = ladder_recipe(load_recipe(path, [f"run_root={tmp_path}"]))
    plan, made = ladder_stages(recipe), set()
    assert len({stage.name for stage in plan}) == len(plan)
    for stage in plan:
        assert set(stage.inputs) <= made
        made |= set(stage.outputs)
    results = {path.name for path in made if path.suffix}
    for row in ladder_rows(recipe, Run.of(recipe)):
        for benchmark in recipe.eval.benchmarks:
            assert f"{row.mode}_{row.model}_{benchmark}.meta.json" in results


def test_a_bare_name_is_a_shipped_recipe_and_a_dry_run_writes_nothing(tmp_path):
    arguments = ["--recipe", "tiny-cpu", "--dry-run", "--set", f"run_root={tmp_path / 'r'}"]
    command = [sys.executable, str(ROOT / "launch" / "ladder.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 0
        and "epochs of sft_no_cot 6" in done.stdout
        and "--model pi3_phaseA" in done.stdout
    )
    assert not (tmp_path / "r").exists()
