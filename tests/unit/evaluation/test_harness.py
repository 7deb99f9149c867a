"""What lm-evaluation-harness is given; the harness itself is not needed."""

import importlib
import json
import re

import pytest

from abscot.common.errors import UserError
from abscot.evaluation import benchmarks, harness
from abscot.evaluation.scoring import SCORERS, score_all
from abscot.recipe.load import ROOT, dump, load_recipe
from abscot.recipe.run import Run
from kit.tiny_run import tiny_recipe

TASKS = sorted((ROOT / "launch" / "harness").glob("abscot_*.yaml"))
COMMON = (ROOT / "launch" / "harness" / "_common_yaml").read_text()


@pytest.fixture
def run(tmp_path) -> Run:
    recipe = tiny_recipe(tmp_path)
    run = Run.of(recipe)
    run.root.mkdir()
    run.config.write_text(dump(recipe))
    return run


def rows_of(benchmark: str, **metadata) -> list[dict]:
    return harness.problems(benchmark, **metadata)[harness.SPLIT].to_list()


def test_a_run_says_which_problems_are_asked_and_how(run):
    rows = rows_of("world", run=run.root, version=1.0, model="served", base_url="http://a/v1")
    assert rows[1] == {
        "benchmark": "world",
        "id": "world/1",
        "system": "Think.",
        "problem": "1+1=?",
        "gold": "2",
    }
    assert len(rows) == 5
    assert rows_of("world", recipe=run.config) == rows


def test_a_local_file_stands_in_for_the_hub(run, tmp_path):
    file = tmp_path / "gsm8k.jsonl"
    file.write_text('{"question": "q", "answer": "a\\n#### 1,200"}\n')
    (row,) = rows_of("gsm8k", run=run.root, gsm8k=file)
    assert (row["problem"], row["gold"]) == ("q", "1200")


def test_no_system_prompt_stays_none(run, tmp_path):
    recipe = load_recipe(run.config, ["data.system_prompt=null"])
    (tmp_path / "other.yaml").write_text(dump(recipe))
    assert {row["system"] for row in rows_of("world", recipe=tmp_path / "other.yaml")} == {""}


@pytest.mark.parametrize("metadata", [{}, {"run": "a", "recipe": "b"}])
def test_either_a_run_or_a_recipe_is_named(metadata):
    with pytest.raises(UserError, match="^--metadata: expected run=DIRECTORY or recipe=FILE"):
        harness.problems("world", **metadata)


def test_verdicts_and_scores_are_those_of_result_rows(run):
    rows = rows_of("world", run=run.root)
    said = ["\\boxed{1}", " \\boxed{\\frac{4}{2}} ", "It is 3", "", "\\boxed{4"]
    found = harness.verdicts([[text] for text in said], rows)
    ours = score_all("math", [text.strip() for text in said], [row["gold"] for row in rows])
    scores = [harness.scores(row, [text]) for row, text in zip(rows, found, strict=True)]
    assert [(s["accuracy"], s["accuracy_any"]) for s in scores] == [
        (verdict.score, verdict.score_any) for verdict in ours
    ]
    assert [s["accuracy"] for s in scores] == [1, 1, 0, 0, 0]
    assert json.loads(found[1])["scorer"] == "math-verify"


@pytest.mark.parametrize("task", TASKS, ids=[path.stem for path in TASKS])
def test_a_task_asks_a_benchmark_that_has_a_scorer(task):
    text = task.read_text()
    (name,) = re.findall(r"^  benchmark: (\w+)$", text, re.MULTILINE)
    assert re.findall(r"^task: (\w+)$", text, re.MULTILINE) == [task.stem] == [f"abscot_{name}"]
    assert benchmarks.BENCHMARKS[name].scorer in SCORERS


def test_what_the_tasks_call_and_read_is_there(run):
    called = re.findall(r"!function ([\w.]+)\.(\w+)$", COMMON, re.MULTILINE)
    assert len(called) == 3
    for module, name in called:
        assert callable(getattr(importlib.import_module(module), name))
    columns = re.findall(r"^(?:description|doc_to_text|doc_to_target): (\w+)", COMMON, re.MULTILINE)
    assert columns == ["system", "problem", "gold"]
    assert {*columns} < {*rows_of("world", run=run.root)[0]}
    assert f"test_split: {harness.SPLIT}" in COMMON
