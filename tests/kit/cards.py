"""A published model with its card, and its snippets run as their reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from abscot.method.vocab import codebook_tokens
from abscot.recipe.load import ROOT
from abscot.reporting import model_card, run_data
from kit.synthetic_run import make_run
from kit.tiny_run import make_model, tiny_tokenizer


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """final/ of a run, random weights, with its card."""
    run = make_run(
        tmp_path_factory.mktemp("card"),
        rounds=1,
        **{
            "eval.benchmarks": "[gsm8k]",
            "eval.modes": "[abstract]",
            "inference.max_model_len_tokens": 400,
        },
    )
    make_model(run.root / "final", tiny_tokenizer(), seed=0)
    model_card.write(run_data.read(run))
    return run.root / "final"


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
