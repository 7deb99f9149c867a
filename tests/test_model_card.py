"""The model card: its header as the hub reads it, and its snippets, run as published."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_run import make_run
from tiny_run import make_model, tiny_tokenizer

from abscot.common import files
from abscot.method.vocab import codebook_tokens
from abscot.recipe.load import ROOT
from abscot.reporting import model_card, run_data


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """final/ of a run, random weights, with its card."""
    run = make_run(
        tmp_path_factory.mktemp("card"),
        rounds=1,
        **{"eval.benchmarks": "[gsm8k]", "inference.max_model_len_tokens": 400},
    )
    make_model(run.root / "final", tiny_tokenizer(), seed=0)
    model_card.write(run_data.read(run))
    return run.root / "final"


def test_the_card_has_the_hubs_header(published):
    from huggingface_hub import ModelCard

    card = ModelCard.load(published / "README.md")
    assert card.data.library_name == "transformers" and card.data.license == "apache-2.0"
    accuracy, tokens = card.data.eval_results
    assert (accuracy.dataset_type, accuracy.dataset_config, accuracy.dataset_split) == (
        "openai/gsm8k",
        "main",
        "test",
    )
    assert (
        accuracy.metric_type == "accuracy"
        and 0 < accuracy.metric_value < 100
        and tokens.metric_value > 5
    )
    for needed in (
        "| abstract | final | gsm8k |",
        "| 83.2 | 1087 |",
        "| 86.2 | 168 |",
        "| 72.0 | 432 |",
        "2604.22709",
    ):
        assert needed in card.text


@pytest.mark.parametrize(
    ("base", "base_model", "license_"),
    [
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B", "apache-2.0"),
        ("meta/other-3B", "meta/other-3B", "other"),
        ("LOCAL", None, "other"),
    ],
)
def test_the_card_names_a_base_that_the_hub_knows(tmp_path, base, base_model, license_):
    from huggingface_hub import ModelCard

    base = base.replace("LOCAL", str(tmp_path))
    run = make_run(tmp_path, rounds=1, **{"model.base": base, "eval.benchmarks": "[world]"})
    card = ModelCard(model_card.card(run_data.read(run), "me/mine", 512))
    assert (card.data.base_model, card.data.license) == (base_model, license_)


def test_the_card_leaves_the_seal_on_the_weights(published):
    files.verify(published)
    assert "README.md" not in json.loads((published / "DONE").read_text())["files"]


def snippet(published: Path, title: str) -> str:
    card = (published / "README.md").read_text()
    return re.search(rf"^### {title}\n.*?^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)[1]


def run_snippet(source: str, directory: Path, **environ: str) -> tuple[list[str], str]:
    """Runs it as its reader would, from the repository; returns the trace and the answer that it
    printed.
    """
    script = directory / "snippet.py"
    script.write_text(source)
    ended = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    trace, answer = re.search(
        r"^trace: (.*)\nanswer:(.*)", ended.stdout, re.MULTILINE | re.DOTALL
    ).groups()
    return trace.split(), answer


def check_trace(trace: list[str]) -> None:
    assert 4 <= len(trace) <= 16 and set(trace) <= set(codebook_tokens())


def test_the_transformers_snippet_runs_as_published(published, tmp_path):
    trace, _ = run_snippet(snippet(published, "transformers"), tmp_path)
    check_trace(trace)


@pytest.mark.vllm
def test_the_vllm_snippet_runs_as_published(published, tmp_path):
    trace, _ = run_snippet(snippet(published, "vLLM"), tmp_path, VLLM_CPU_KVCACHE_SPACE="1")
    check_trace(trace)
