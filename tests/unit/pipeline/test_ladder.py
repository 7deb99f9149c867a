"""The ladder's runs and stages."""

import json
import subprocess
import sys

import pytest

from abscot.common import files
from abscot.method.phases import baselines
from abscot.pipeline.ladder import ladder_recipe, ladder_siblings, ladder_stages
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run, claim
from kit.recipes import RECIPES
from kit.synthetic_run import add_codebook, add_phase, add_results, write_manifest, write_world


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
    assert done.returncode == 0 and "in whole epochs: sft_no_cot 6" in done.stdout
    own, beside = done.stdout.split("schedule; world, extend, prepare, evaluate_base: linked from ")
    assert "world.py" in own and "--phase pause" in own
    assert "world.py" not in beside and "--phase pause" not in beside
    for text in (own, beside):
        assert "--model pi1_phaseA" in text and "--model final" in text
    assert not (tmp_path / "r").exists()


def finish(recipe) -> None:
    """Puts there what the stages of one run of the ladder make."""
    run = claim(recipe)
    write_manifest(run.shards, rows=40)
    write_world(run)
    add_codebook(run, [5, 3])
    for stage in ladder_stages(recipe):
        for output in stage.outputs:
            if output.suffix:
                model = stage.launch.arguments[1]
                mode = output.name.removesuffix(f"_{model}_world.meta.json")
                add_results(run, mode, model, "world", stage.round, problems=20)
            elif not files.is_done(output):
                output.mkdir(parents=True, exist_ok=True)
                if stage.kind != "traces":
                    (output / "config.json").write_text('{"max_position_embeddings": 512}')
                    files.seal(output)
        if stage.kind == "train":
            add_phase(run, stage.training.tag, recipe, steps=3)


def test_json_is_alone_on_stdout_and_what_is_done_is_not_done_again(tmp_path):
    keys = [f"run_root={tmp_path}", "name=r", "rounds=1", "schedule=paper"]
    recipe = ladder_recipe(load_recipe(None, keys))
    (other,) = ladder_siblings(recipe)
    for of_one_run in (recipe, other):
        finish(of_one_run)
    command = [sys.executable, str(ROOT / "launch" / "ladder.py"), "--json"]
    command += [word for key in keys for word in ("--set", key)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["label"] for row in rows][-2:] == [
        "Abstract-CoT (paper), round 1",
        "Abstract-CoT (grounded), round 1",
    ]
    assert {"label", "accuracy", "tokens", "swapped", "permuted"} <= set(rows[0])
    assert rows[-1]["run"] == "r-grounded" and rows[-1]["swapped"] is not None
    assert None not in [row["accuracy"] for row in rows]
    assert "evaluate_final: done before" in done.stderr and "done in" not in done.stderr
    for run in (Run.of(recipe), Run.of(other)):
        assert (run.report / "index.html").is_file()
