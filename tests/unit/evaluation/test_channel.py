"""The channel: a result file of the models behind the bottleneck."""

import dataclasses
import json

import pytest

from abscot.common.errors import UserError
from abscot.evaluation import benchmarks
from abscot.evaluation.evaluate import evaluate
from abscot.evaluation.jobs import jobs_of
from abscot.method.vocab import AbstractVocab
from kit.tiny_run import tiny_tokenizer, training_of


def test_the_channel_is_a_result_file_of_phase_a_models(tiny_run):
    recipe, run, vocab = tiny_run
    problems = run.root.parent / "cots.jsonl"
    lines = [
        {"id": i, "problem": f"{i}+1=?", "answer": str(i + 1), "cot": f"{i} and 1 make {i + 1}."}
        for i in range(5)
    ]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = dataclasses.replace(recipe.eval, files={"world": str(problems)}, channel_problems=3)
    recipe = dataclasses.replace(recipe, eval=asked)
    if not (export := training_of(recipe, run, 1, "A").export).exists():
        from kit.tiny_run import make_model

        make_model(export, tiny_tokenizer(), seed=1)
    (job,) = jobs = jobs_of(recipe, run, "pi1_phaseA", None, None)
    assert job.name == "channel_pi1_phaseA_world"
    evaluate(jobs)
    rows = [json.loads(line) for line in job.result.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["world/0", "world/1", "world/2"]
    for row in rows:
        assert (
            set(row["trace_ids"]) <= set(vocab.codebook_ids)
            and row["n_reasoning_tokens"] == len(row["trace_ids"]) + 2
        )
    assert json.loads(job.meta.read_text())["round"] == 1 and job.done()


def test_a_benchmark_without_cots_has_no_channel(tiny_run):
    recipe, run, vocab = tiny_run
    assert (
        not benchmarks.has_cots("aime24")
        and benchmarks.has_cots("world")
        and benchmarks.has_cots("math500")
    )
    assert AbstractVocab.of(tiny_tokenizer()) == vocab
    (job,) = jobs = jobs_of(recipe, run, "base", ["channel"], None)
    with pytest.raises(UserError, match="world/0: no gold CoT"):
        evaluate(jobs)
