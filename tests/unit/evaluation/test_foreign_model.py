"""A downloaded checkpoint is asked in any run; one without the tokens in few modes."""

import dataclasses

import pytest

from abscot.evaluation.evaluate import evaluate
from abscot.evaluation.jobs import jobs_of
from abscot.evaluation.results import read_result
from abscot.generation.transformers_engine import TransformersEngine
from abscot.model.foreign import make
from abscot.recipe.run import Run
from kit.corpus import refused
from kit.published import make_published
from kit.tiny_run import tiny_recipe


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    make_published(root)
    return root


def test_a_published_checkpoint_is_asked_where_the_run_has_made_nothing(published, tmp_path):
    recipe = tiny_recipe(tmp_path)
    run = Run.of(recipe)
    answers = {}
    for name in ("final", "adapters/pi1_phaseA"):
        jobs = jobs_of(recipe, run, str(published / name), ["abstract", "no_cot"], None)
        assert not any(job.done() for job in jobs) and not run.base.exists()
        (model,) = {job.model for job in jobs}
        make(model, recipe)
        evaluate(jobs, engine=TransformersEngine(model.directory, recipe.inference))
        assert all(job.done() for job in jobs)
        meta, rows = read_result(run, jobs[0].name)
        assert (meta.model, meta.round) == (model.name, None)
        assert meta.model_fingerprint == model.fingerprint
        assert len(rows) == 5 and all(row.trace_tokens[0].startswith("<TOKEN_") for row in rows)
        answers[name] = [(row.trace_ids, row.response) for row in rows]
    assert answers["final"] == answers["adapters/pi1_phaseA"]  # the one is the other, merged


def test_without_the_tokens_the_modes_that_write_them_are_refused(published, tmp_path):
    recipe = tiny_recipe(tmp_path)
    run, base = Run.of(recipe), str(published / "base")
    for mode in ("abstract", "pause", "abstract_permuted"):
        refused(
            lambda mode=mode: jobs_of(recipe, run, base, [mode], None),
            f"--model {base}",
            "<beginabstract>",
            f"mode {mode}",
            "--mode verbal",
        )
    jobs = jobs_of(recipe, run, base, ["verbal", "no_cot"], None)
    config = dataclasses.replace(recipe.inference, max_num_seqs=8)
    evaluate(jobs, engine=TransformersEngine(published / "base", config))
    assert all(job.done() for job in jobs)
