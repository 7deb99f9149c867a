"""launch/ask.py as a user calls it, with a real vLLM engine."""

import json
import subprocess
import sys

import pytest

from abscot.evaluation.evaluate import evaluate
from abscot.evaluation.jobs import jobs_of
from abscot.evaluation.results import Answer, read_result
from abscot.generation.transformers_engine import TransformersEngine
from abscot.recipe.load import ROOT
from kit.tiny_run import make_tiny_run

pytestmark = pytest.mark.vllm


def test_piped_questions_are_answered_as_evaluation_does(tmp_path):
    recipe, run, _ = make_tiny_run(tmp_path)
    before = sorted(run.root.rglob("*"))
    asked = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "ask.py"), "--model", str(run.base), "--json"],
        input="0+1=?\n1+1=?\n" + "long " * 300 + "\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    first, second, refused = map(json.loads, asked.stdout.splitlines())
    assert asked.returncode == 2 and "room for" in refused["error"], asked.stderr
    assert sorted(run.root.rglob("*")) == before, "asking writes nothing"

    (job,) = jobs_of(recipe, run, "base", ["abstract"], None)
    evaluate([job], TransformersEngine(run.base, recipe.inference))
    rows = read_result(run, job.name).rows
    for line, row in zip((first, second), rows, strict=False):
        assert line["question"] == row.problem
        assert {name: line[name] for name in Answer.model_fields} == {
            name: getattr(row, name) for name in Answer.model_fields
        }
        assert line["seconds"] > 0 and line["tokens_per_s"] > 0
