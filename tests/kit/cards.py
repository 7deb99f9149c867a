"""A published model with its card, and its snippets run as their reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from abscot.method.lineage import Training, trainings
from abscot.method.vocab import codebook_tokens
from abscot.model.lora import with_lora
from abscot.recipe.load import ROOT, load_recipe
from abscot.reporting import model_card, run_data
from abscot.training.export import export
from abscot.training.train_phase import chat_model_of
from kit.synthetic_run import make_run
from kit.tiny_run import EXPORT_META, make_model, tiny_tokenizer


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """final/ of a run, random weights, with its card; the adapters that made it lie beside it."""
    run = make_run(
        tmp_path_factory.mktemp("card"),
        rounds=1,
        **{
            "eval.benchmarks": "[gsm8k]",
            "eval.modes": "[abstract]",
            "inference.max_model_len_tokens": 400,
            "lora": "{r: 4}",
            "codebook_size": 64,  # the tiny tokenizer's
        },
    )
    make_model(run.base, tiny_tokenizer(), seed=0)
    recipe = load_recipe(run.config)
    for seed, training in enumerate(trainings(recipe, run)):
        _train_at_random(training, seed + 3)
    model_card.write(run_data.read(run))
    return run.root / "final"


def _train_at_random(training: Training, seed: int) -> None:
    """Its adapter and its model, as a training would leave them."""
    import torch
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(training.start, dtype=torch.float32)
    lm = with_lora(lm, training.recipe, training.start, training.tag)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    meta = EXPORT_META.model_copy(update={"tag": training.tag, "phase": training.phase.name})
    chat = chat_model_of(training)
    export(lm, training.start, training.export, training.adapter, meta, chat=chat)


def snippet(published: Path, title: str, language: str = "python") -> str:
    card = (published / "README.md").read_text()
    block = rf"^### {title}\n.*?^```{language}\n(.*?)^```"
    return re.search(block, card, re.MULTILINE | re.DOTALL)[1]


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
    return re.findall(r"<[^>]*>", trace), answer.strip()


def check_trace(trace: list[str]) -> None:
    """By the rules of the recipe, tiny-cpu."""
    assert 4 <= len(trace) <= 10 and set(trace) <= set(codebook_tokens())
