"""lm-evaluation-harness, started as a user starts it, asks a served model: its number is ours."""

import importlib.util
import json
import subprocess
import sys
import urllib.request
from dataclasses import dataclass

import pytest

from abscot.evaluation.results import read_result
from abscot.evaluation.scoring import score_all
from abscot.recipe.load import ROOT

pytestmark = pytest.mark.vllm

TASK = "abscot_world"
CONCURRENT = 4


@dataclass
class Measured:
    """What the harness wrote: results of the task, and a sample per problem in their order."""

    results: dict
    samples: list[dict]


@pytest.fixture(scope="module")
def measured(small_run, tmp_path_factory) -> Measured:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-evaluation-harness is not installed: pip install -e '.[harness]'")
    from kit.serving import serve

    recipe, run, out = small_run.recipe, small_run.run, tmp_path_factory.mktemp("harness")
    # The most that an answer of ours has, with delimiters and newline.
    most_tokens = recipe.traces.m_max + 3 + recipe.eval.max_answer_tokens
    with serve(run.root / "final") as url:
        with urllib.request.urlopen(f"{url}/models") as answer:
            name = json.load(answer)["data"][0]["id"]
        served = f"model={name},base_url={url}/chat/completions,num_concurrent={CONCURRENT}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions"),
                *("--model_args", f"{served},tokenized_requests=False", "--apply_chat_template"),
                *("--include_path", "launch/harness", "--tasks", TASK),
                *("--metadata", f"run={run.root}", "--gen_kwargs", f"max_gen_toks={most_tokens}"),
                *("--output_path", str(out), "--log_samples"),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout[-5000:]
    (results,), (samples,) = out.rglob("results_*.json"), out.rglob(f"samples_{TASK}_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda s: s["doc_id"])
    return Measured(json.loads(results.read_text())["results"][TASK], rows)


def test_every_problem_is_asked_as_we_ask_it(measured, small_run):
    ours = read_result(small_run.run, "abstract_final_world").rows
    assert [s["doc"]["id"] for s in measured.samples] == [row.id for row in ours]
    system = small_run.recipe.data.system_prompt
    for sample, row in zip(measured.samples, ours, strict=True):
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": row.problem})
        assert json.loads(sample["arguments"]["gen_args_0"]["arg_0"][0]) == turns


def test_its_number_is_that_of_our_scorer(measured):
    said = [sample["resps"][0][0].strip() for sample in measured.samples]
    verdicts = score_all("math", said, [sample["doc"]["gold"] for sample in measured.samples])
    assert [s["accuracy"] for s in measured.samples] == [verdict.score for verdict in verdicts]
    for metric, scores in (
        ("accuracy", [verdict.score for verdict in verdicts]),
        ("accuracy_any", [verdict.score_any for verdict in verdicts]),
    ):
        assert measured.results[f"{metric},abscot"] == pytest.approx(sum(scores) / len(scores))


def test_greedy_answers_are_those_of_our_own_evaluation(measured, small_run):
    """One that our limit cut may go on at the server, whose limit holds for trace and answer."""
    assert not small_run.recipe.eval.trace_temperature
    assert not small_run.recipe.eval.answer_temperature
    ours = read_result(small_run.run, "abstract_final_world").rows
    for sample, row in zip(measured.samples, ours, strict=True):
        said = sample["resps"][0][0].strip()
        if row.finish_reason == "stop":
            assert (said, sample["accuracy"]) == (row.response, row.correct)
        else:
            assert said.startswith(row.response)
    assert any(row.finish_reason == "stop" for row in ours)
