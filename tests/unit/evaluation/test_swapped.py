"""Traces of another problem: what a result file says of them, in one go, in cells and after a
kill.
"""

import dataclasses
import json

import pytest

from abscot.common.draws import rng
from abscot.common.errors import UserError
from abscot.evaluation import evaluate as evaluation
from abscot.evaluation.evaluate import evaluate
from abscot.evaluation.jobs import jobs_of
from abscot.evaluation.results import read_result
from abscot.generation.requests import Completion, untold
from abscot.method.vocab import AbstractVocab
from kit.tiny_run import make_tiny_run, tiny_tokenizer


class Engine:
    """Answers as KeyedEngine does, through all stages of a request."""

    window_tokens = 256

    def __init__(self, killed_after: int | None = None):
        self.killed_after = killed_after
        self.codebook_ids = AbstractVocab.of(tiny_tokenizer()).codebook_ids

    def stream(self, requests, stepped=untold):
        for index, request in enumerate(requests):
            if index == self.killed_after:
                raise KeyboardInterrupt
            stages = []
            while request:
                rules = request.sampling
                draw = rng(rules.seed, list(request.prompt))
                ids = self.codebook_ids if rules.m_max else range(40, 90)
                tokens = draw.choice(ids, max(rules.m_min or 0, 5)).tolist()
                stages.append(Completion(tokens, "length", len(request.prompt), 0))
                request = request.next_stage(stages[-1])
            yield index, stages


@pytest.fixture
def swapped(tmp_path):
    """(keys of eval) -> the jobs of the base for abstract_swapped, abstract, abstract_permuted."""
    recipe, run, _ = make_tiny_run(tmp_path)

    def jobs(**keys):
        asked = dataclasses.replace(recipe.eval, answer_temperature=0.5, **keys)
        modes = ["abstract_swapped", "abstract", "abstract_permuted"]
        return jobs_of(dataclasses.replace(recipe, eval=asked), run, "base", modes, None)

    return jobs


def rows_of(job):
    return read_result(job.run, job.name).rows


def test_the_trace_is_that_of_the_problem_that_is_named(swapped):
    jobs = swapped(samples=2)
    evaluate(jobs, Engine())
    theirs = {(row.id, row.sample): row.trace_ids for row in rows_of(jobs[1])}
    for row in rows_of(jobs[0]):
        assert row.trace_of not in (None, row.id)
        assert row.trace_ids == theirs[row.trace_of, row.sample] != theirs[row.id, row.sample]
    assert {row.trace_of for row in rows_of(jobs[1])} == {None}


def test_one_engine_is_started_for_all_three_modes(swapped, monkeypatch):
    started = []
    monkeypatch.setattr(
        evaluation, "VllmEngine", lambda model, *_: started.append(model) or Engine()
    )
    jobs = swapped()
    evaluate(jobs)
    assert len(started) == 1 and all(job.done() for job in jobs)


def test_cells_and_kills_change_nothing(swapped):
    (job, *_) = jobs = swapped(samples=2)
    evaluate(jobs[:1], Engine())
    whole = job.result.read_bytes()
    job.meta.unlink()
    for sample in (1, 0):
        with pytest.raises(KeyboardInterrupt):
            evaluate(jobs[:1], Engine(killed_after=2), sample)
        evaluate(jobs[:1], Engine(), sample)
    evaluate(jobs[:1])  # all are there: no engine
    assert job.result.read_bytes() == whole


def test_only_the_problems_that_are_asked_take_part(swapped):
    jobs = swapped(limit=2)
    evaluate(jobs[:1], Engine())
    assert [(row.id, row.trace_of) for row in rows_of(jobs[0])] == [
        ("world/0", "world/1"),
        ("world/1", "world/0"),
    ]
    with pytest.raises(UserError, match="world has 1 problem"):
        evaluate(swapped(limit=1)[:1], Engine())


def test_a_kept_answer_behind_the_trace_of_another_problem_is_refused(swapped, tmp_path):
    """A problem was put into the file in between: the traces go another way round."""
    (job, *_) = swapped()
    with pytest.raises(KeyboardInterrupt):
        evaluate([job], Engine(killed_after=4))
    file = tmp_path / "sums.jsonl"
    more = [json.dumps({"id": 9 + i, "problem": f"{i}+9=?", "answer": f"{i + 9}"}) for i in (0, 1)]
    file.write_text(file.read_text() + "\n".join(more) + "\n")
    with pytest.raises(UserError, match="the answer to another question"):
        evaluate([job], Engine())
