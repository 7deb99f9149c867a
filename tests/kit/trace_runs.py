"""A tiny run whose traces are made in this process."""

import dataclasses
import shutil

import pytest

from kit.tiny_run import make_tiny_run

ROWS = 160


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("traces")
    recipe, run, vocab = make_tiny_run(root, ROWS)
    recipe.inference.chunk_tokens = 8 * recipe.traces.m_max  # eight random traces
    return root, recipe, run, vocab


@pytest.fixture
def tiny(made_once):
    """(recipe, run, vocab), the run without any traces."""
    root, recipe, run, vocab = made_once
    shutil.rmtree(run.root / "teacher_traces", ignore_errors=True)
    return recipe, run, vocab


def with_traces(recipe, **changes):
    return dataclasses.replace(recipe, traces=dataclasses.replace(recipe.traces, **changes))
