"""Chunks of a trace set: cut by what their rows cost, whatever kills or shards them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.generation.trace_chunks import cut, row_tokens
from abscot.generation.trace_jobs import generate, open_job
from abscot.generation.trace_records import JOB
from abscot.generation.trace_set import TraceSet
from abscot.generation.trace_sources import Item
from kit.tiny_run import training_of
from kit.trace_runs import ROWS, with_traces


def test_a_chunk_holds_neighbours_up_to_its_tokens_and_a_dearer_row_is_one():
    tokens = np.array([40, 60, 1, 250, 30, 30, 30, 30])
    chunks = cut((Item(row, str(row), 0) for row in range(8)), tokens, 100)
    assert [[item.row for item in chunk] for chunk in chunks] == [[0, 1], [2], [3], [4, 5, 6], [7]]


def test_a_row_costs_its_prompt_what_is_in_sight_and_what_is_decoded(tiny):
    recipe, run, _ = tiny
    m_max, cost = recipe.traces.m_max, {}
    for name, changes in {
        "one": {},
        "best": {"best_of": 3},
        "teacher": {"sources": {"B": ["model_with_cot"]}},
        "codes": {"sources": {"B": ["grounded"]}},
    }.items():
        job_recipe = with_traces(recipe, **changes)
        training = training_of(job_recipe, run, 1, "B")
        shutil.copytree(run.base, training.before.export, dirs_exist_ok=True)
        store = open_job(training, imported=True).store
        cost[name] = row_tokens(training, store)
    shutil.rmtree(training.before.export)
    lengths = store.lengths()
    x, c, y = (lengths[name].astype(np.int64) for name in ("prompt", "cot", "answer"))
    assert (cost["one"] == x + 2 * m_max).all()
    assert (cost["teacher"] == x + c + 2 * m_max).all()
    assert (cost["codes"] == x + c).all()
    assert (cost["best"] == x + 3 * (2 * m_max + x + m_max + y)).all()


def test_the_size_of_its_chunks_is_part_of_a_set(tiny):
    recipe, run, _ = tiny
    job = open_job(training_of(recipe, run, 1, "A"))
    assert [len(chunk) for chunk in job.chunks()] == [8] * 20 + [8, 4]  # 12 of probed prompts
    assert not generate(job, 0, 3)
    inference = dataclasses.replace(recipe.inference, chunk_tokens=999)
    other = dataclasses.replace(recipe, inference=inference)
    with pytest.raises(UserError, match="begun with another chunk_tokens; delete .*parts"):
        generate(open_job(training_of(other, run, 1, "A")), 1, 3)


def test_parts_and_sets_of_the_version_before(tiny):
    """A set that was published is read; one that was begun is made anew, which one line says."""
    recipe, run, _ = tiny
    job = open_job(training_of(recipe, run, 1, "A"))
    assert not generate(job, 0, 3)

    def of_version_1(meta: dict) -> dict:
        sampled = {k: v for k, v in meta["sampled"].items() if k != "chunk_tokens"}
        return {**meta, "version": 1, "sampled": {**sampled, "chunk_rows": 2048}}

    begun = json.loads((job.parts / JOB).read_text())
    (job.parts / JOB).write_text(json.dumps(of_version_1(begun)))
    with pytest.raises(UserError, match="begun with another version, chunk_tokens, chunk_rows"):
        generate(job, 1, 3)
    shutil.rmtree(job.parts)
    assert generate(job)
    files.seal(job.final, of_version_1(files.read_done(job.final)))
    assert len(TraceSet.load(job.final, job.store, 1, "A")) == ROWS
