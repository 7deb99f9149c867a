"""Recipes: what is refused, what overrides do, and that everything shipped loads and plans its
rounds.
"""

import json
import subprocess
import sys

import pytest

from abscot.common.errors import UserError
from abscot.pipeline.stages import stages_of
from abscot.recipe.load import ROOT, dump, load_recipe
from abscot.recipe.run import claim

RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_plans_its_rounds(path, tmp_path):
    recipe = load_recipe(path, [f"run_root={tmp_path}"])
    names = [stage.name for stage in stages_of(recipe)]
    assert len(names) == len(set(names))
    for round_ in range(1, recipe.rounds + 1):
        order = [
            f"traces_pi{round_}_phaseA",
            f"train_pi{round_}_phaseA",
            f"traces_pi{round_}_phaseB",
            f"train_pi{round_}_phaseB",
        ]
        places = [names.index(name) for name in order]
        assert places == sorted(places)
    made = set()
    for stage in stages_of(recipe):
        assert set(stage.inputs) <= made, f"{stage.name} reads what no stage before it makes"
        made |= set(stage.outputs)
    final = tmp_path / recipe.name / "final"
    assert final in made


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_every_deepspeed_config_has_explicit_numbers(path):
    text = path.read_text()
    assert '"auto"' not in text
    tree = json.loads(text)
    assert tree["zero_optimization"]["stage"] in (1, 2, 3)
    assert (
        "optimizer" not in tree and "scheduler" not in tree
    )  # the trainer is the one owner of both


def test_dump_and_load_are_inverse(tmp_path):
    recipe = load_recipe(None, ["train.lr=2e-4", "lora={r: 8}"])
    (tmp_path / "copy.yaml").write_text(dump(recipe))
    assert load_recipe(tmp_path / "copy.yaml") == recipe
    assert recipe.train.lr == 2e-4 and recipe.lora.r == 8 and recipe.lora.alpha == 64


@pytest.mark.parametrize(
    "override, says",
    [
        ("train.learning_rate=1", "unknown key train.learning_rate"),
        ("trian.lr=1", "did you mean train"),
        ("train.epochs=1.5", "train.epochs: expected int"),
        ("train.epochs=yes", "train.epochs: expected int"),
        ("train.lr=-1", "train.lr"),
        ("staging=stage", "expected one of reuse, partition"),
        ("traces.m_min=500", "traces.m_min"),
        ("train.global_batch_tokens=9", "exactly one of"),
        ("name=../other", "plain directory name"),
        ("train.lr", "expected key.path=value"),
        ("eval.benchmarks=world", "expected a list"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(override, says):
    with pytest.raises(UserError) as error:
        load_recipe(None, [override])
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["round.py", "--round", "all", "--set", "no_such=1"], "unknown key no_such"),
        (["round.py", "--round", "all", "--recipe", "no/such.yaml"], "no/such.yaml"),
        (["round.py", "--round", "all", "--set", "model.base=./no-such-model"], "no-such-model"),
        (["round.py", "--round", "all", "--set", "data.source=./no-such.jsonl"], "no-such.jsonl"),
        (["round.py", "--round", "9"], "expected all, 0"),
        (["round.py", "--round", "2"], "round.py --round 0"),
        (["train.py", "--phase", "C"], "--phase C: expected one of A, B"),
        (["train.py", "--phase", "A", "--round", "7"], "--round 7"),
    ],
)
def test_a_user_mistake_is_one_line_with_exit_code_2(arguments, says, tmp_path):
    root = tmp_path / "runs"
    command = [
        sys.executable,
        str(ROOT / "launch" / arguments[0]),
        *arguments[1:],
        "--set",
        f"run_root={root}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and says in done.stderr
    assert "Traceback" not in done.stderr
    assert not root.exists(), "a refused command writes nothing"


def test_a_run_directory_belongs_to_one_recipe(tmp_path):
    root = f"run_root={tmp_path}"
    run = claim(load_recipe(None, [root]))
    before = run.config.read_text()
    with pytest.raises(UserError, match=r"train.lr is .* there, 0.5 here"):
        claim(load_recipe(None, [root, "train.lr=0.5"]))
    assert run.config.read_text() == before
    claim(load_recipe(None, [root, "eval.limit=7"]))  # how a model is asked may change
    assert "limit: 7" in run.config.read_text()


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "tiny-cpu").mkdir()
    (tmp_path / "tiny-cpu" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a run"):
        claim(load_recipe(None, [f"run_root={tmp_path}"]))


def test_import_is_light():
    """`import abscot` and what the launch scripts need for --help and --dry-run load no torch."""
    modules = "sys, abscot.cli, abscot.pipeline.runner, abscot.method.phases"
    code = f"import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
