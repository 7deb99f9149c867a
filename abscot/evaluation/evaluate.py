"""Evaluation: models x modes x benchmarks -> one result file each; one engine does all the jobs of
its model.
"""

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np

from abscot.common.hardware import device_name, inference_dtype
from abscot.common.log import Progress, log
from abscot.evaluation import benchmarks, judge, scoring
from abscot.evaluation.benchmarks import BENCHMARKS, Problem
from abscot.evaluation.jobs import Job
from abscot.evaluation.modes import MODES, Asker, Question
from abscot.evaluation.results import (
    AGAIN,
    Answer,
    Environment,
    KeptAnswer,
    ResultMeta,
    ResultRow,
    write_rows,
)
from abscot.generation.transformers_engine import TransformersEngine
from abscot.generation.vllm_engine import VllmEngine

CHANNEL_BATCH = 16  # sequences with their CoTs, in transformers' padded cache


def evaluate(jobs: list[Job], engine: VllmEngine | None = None, sample: int | None = None) -> None:
    """Does what is left of the jobs of one model. engine: a started engine of that model; None
    starts one if needed.

    sample: only these answers are made, and kept for the call without `sample` that publishes them
    all: cells of a grid, each in a process of its own.
    """
    left = [job for job in jobs if not job.done()]
    for job in jobs:
        if job not in left:
            log(f"{job.result}: already done")
    if not left:
        return
    recipe, run = left[0].recipe, left[0].run
    problems = {
        name: benchmarks.load(name, recipe, run)
        for name in dict.fromkeys(job.benchmark for job in left)
    }
    run.results.mkdir(parents=True, exist_ok=True)
    for hides in (False, True):
        same_engine = [
            (job, job.questions(problems[job.benchmark]))
            for job in left
            if MODES[job.mode].cot is hides
        ]
        if same_engine:
            _ask(same_engine, engine, hides, sample)


def _ask(
    jobs: list[tuple[Job, list[Question]]],
    engine: VllmEngine | None,
    hides: bool,
    sample: int | None,
) -> None:
    """Jobs of one model by one engine, which starts only if an answer is missing."""
    asker = None
    for job, questions in jobs:
        samples = [s for s in job.samples if sample in (None, s)]
        answers = _kept(job, samples)
        left = [i for i, q in enumerate(questions) if q.sample in samples and i not in answers]
        if left:
            asker = asker or _asker([job for job, _ in jobs], engine, hides)
            _generate(job, questions, left, answers, asker)
        if sample is None:
            _publish(job, questions, [answers[i] for i in range(len(questions))])
            for each in samples:
                job.partial(each).unlink()
        else:
            log(
                f"{job.name}: sample {sample} is done; python launch/evaluate.py without --sample "
                "puts all together"
            )


def _asker(jobs: list[Job], engine: VllmEngine | None, hides: bool) -> Asker:
    recipe, asked = jobs[0].recipe, jobs[0].model
    if asked.source:
        from abscot.model.foreign import make

        make(asked, recipe)
    model = asked.directory
    engine = _masking_engine(jobs[0]) if hides else engine or VllmEngine(model, recipe.inference)
    return Asker(model, recipe, [job.mode for job in jobs], engine)


def _masking_engine(job: Job) -> TransformersEngine:
    """vLLM cannot hide a CoT that is in its cache."""
    config = dataclasses.replace(job.recipe.inference, max_num_seqs=CHANNEL_BATCH)
    return TransformersEngine(job.model.directory, config)


def _generate(
    job: Job,
    questions: list[Question],
    left: list[int],
    answers: dict[int, KeptAnswer],
    asker: Asker,
) -> None:
    """Adds the answers to the questions `left`. Each is on disk before the next is waited for."""
    spent_s, start = max((a.elapsed_s for a in answers.values()), default=0.0), time.monotonic()
    environment = Environment(
        engine=type(asker.engine).__name__,
        dtype=inference_dtype(job.recipe.inference.dtype),
        device=device_name(),
    )
    samples, total = sorted({questions[i].sample for i in left}), len(left) + len(answers)
    with contextlib.ExitStack() as stack:
        files = {s: stack.enter_context(open(job.partial(s), "a")) for s in samples}
        bar = stack.enter_context(Progress(total, "answers", job.name, len(answers)))
        for index, completions in asker.engine.stream([asker.request(questions[i]) for i in left]):
            number = left[index]
            question = questions[number]
            answers[number] = KeptAnswer(
                number=number,
                elapsed_s=spent_s + time.monotonic() - start,
                computed=[c.prompt_tokens - c.cached_tokens for c in completions],
                row=asker.answer(question, completions),
                environment=environment,
            )
            files[question.sample].write(answers[number].line())
            files[question.sample].flush()
            bar.update()


def _kept(job: Job, samples: list[int]) -> dict[int, KeptAnswer]:
    """Number of the question -> answer that is on disk; a line that a kill cut short is taken out
    of its file.
    """
    answers = {}
    for path in filter(Path.exists, map(job.partial, samples)):
        whole_bytes = 0
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                answer = KeptAnswer.of(json.loads(line), str(path), AGAIN)
                answers[answer.number] = answer
                whole_bytes += len(line)
        os.truncate(path, whole_bytes)
    return answers


def _publish(job: Job, questions: list[Question], answers: list[KeptAnswer]) -> None:
    """Scores all answers; the result file first and its meta last, so that a meta file vouches for
    its rows.
    """
    rows = _scored(job, [_row(q, a.row) for q, a in zip(questions, answers, strict=True)])
    job.meta.unlink(missing_ok=True)
    write_rows(job.result, rows)
    meta = _meta(job, rows, answers)
    meta.write(job.meta)
    accuracy = f"accuracy {meta.accuracy:.3f}" if meta.accuracy is not None else "not judged"
    log(f"{job.name}: {accuracy}, {meta.mean_total_tokens:.1f} tokens per answer -> {job.result}")


def _row(question: Question, answer: Answer) -> ResultRow:
    problem: Problem = question.problem
    return ResultRow(
        id=problem.id,
        sample=question.sample,
        problem=problem.problem,
        gold=problem.gold,
        **dict(answer),
    )


def _scored(job: Job, rows: list[ResultRow]) -> list[ResultRow]:
    scorer = BENCHMARKS[job.benchmark].scorer
    if scorer == "judge":
        judge.write_answers(job.result.with_suffix(".answers.json"), rows, generator=job.name)
        verdicts = judge.score_all(job.recipe, rows)
    else:
        verdicts = scoring.score_all(scorer, [r.response for r in rows], [r.gold for r in rows])
    return [
        row.model_copy(
            update={
                "prediction": verdict.prediction,
                "correct": verdict.score,
                "scorer": verdict.scorer,
            }
        )
        for row, verdict in zip(rows, verdicts, strict=True)
    ]


def _meta(job: Job, rows: list[ResultRow], answers: list[KeptAnswer]) -> ResultMeta:
    scores = [row.correct for row in rows if row.correct is not None]
    wall_s = max(answer.elapsed_s for answer in answers)
    tokens = sum(row.n_total_tokens for row in rows)
    return ResultMeta(
        **dict(job.identity()),
        problems=len({row.id for row in rows}),
        accuracy=float(np.mean(scores)) if scores else None,
        mean_total_tokens=tokens / len(rows),
        wall_s=wall_s,
        tokens_per_s=tokens / max(wall_s, 1e-9),
        cut_prompts=sum(row.prompt_cut for row in rows),
        unfinished_answers=sum(row.finish_reason == "length" for row in rows),
        abstract_tokens_in_responses=sum(row.n_abstract_in_response for row in rows),
        environment=answers[0].environment,
        prompt_tokens_computed=np.sum([a.computed for a in answers], axis=0).tolist(),
    )
