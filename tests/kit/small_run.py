"""One small whole run, made once by the real commands, that the end-to-end tests look at."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

SMALL = [
    "rounds=2",
    "schedule=paper",  # A and B in both rounds
    "traces.sources={A: [grounded, model], B: [model]}",
    "world.rows=160",
    "world.heldout=24",
    "world.base_steps=12",
    "train.channel_rows=16",
    "train.channel_every_steps=2",
    "inference.chunk_tokens=10000",  # more chunks than one: work for two processes
    "traces.probe_prompts=8",
    "eval.modes=[abstract, abstract_swapped]",
]


@dataclass
class SmallRun:
    """The finished run, and how to call a launch script on it."""

    recipe: Recipe
    run: Run
    overrides: list[str]
    output: str

    def launch(self, script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
        return launch(script, *arguments, *self.overrides, **options)


def launch(
    script: str, *arguments: str, timeout: float = 600, **environ: str
) -> subprocess.CompletedProcess:
    """Runs a launch script as a user would; output in .stdout, errors too."""
    command = [sys.executable, str(ROOT / "launch" / script), *arguments]
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env={**os.environ, **environ},
    )


def overrides_of(root: Path, *keys: str) -> list[str]:
    return [word for key in (f"run_root={root}", *SMALL, *keys) for word in ("--set", key)]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> SmallRun:
    """Two rounds on a few rows: every stage, grounded and sampled traces, two DeepSpeed ranks and
    vLLM as they are.
    """
    overrides = overrides_of(tmp_path_factory.mktemp("runs"))
    recipe = load_recipe(None, overrides[1::2])
    done = launch("round.py", "--round", "all", *overrides, timeout=1800)
    assert done.returncode == 0, done.stdout
    return SmallRun(recipe, Run.of(recipe), overrides, done.stdout)
