"""Evaluation: models x modes x benchmarks -> one result file each; one engine does all the jobs of
its model.
"""

import contextlib
import dataclasses
import itertools
import os
import time

from abscot.common.disk import naming
from abscot.common.errors import UserError
from abscot.common.files import sha256_file
from abscot.common.hardware import device_name, inference_dtype
from abscot.common.log import Progress, log
from abscot.evaluation import benchmarks, judge, scoring
from abscot.evaluation.benchmarks import BENCHMARKS
from abscot.evaluation.jobs import Job
from abscot.evaluation.modes import MODES, Asker, Question
from abscot.evaluation.results import (
    Answer,
    Asked,
    Environment,
    KeptAnswer,
    ResultMeta,
    ResultRow,
    Totals,
    parse_line,
    read_bytes,
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
        answers = _kept(job, questions, samples)
        left = [i for i, q in enumerate(questions) if q.sample in samples and i not in answers]
        if left:
            asker = asker or _asker([job for job, _ in jobs], engine, hides)
            _generate(job, questions, left, answers, asker)
        if sample is None:
            _publish(job, [answers[i] for i in range(len(questions))])
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
    engine = (
        _masking_engine(jobs[0])
        if hides
        else engine or VllmEngine(model, recipe.inference, recipe.codebook_size)
    )
    return Asker(model, recipe, [job.mode for job in jobs], engine)


def _masking_engine(job: Job) -> TransformersEngine:
    """vLLM cannot hide a CoT that is in its cache."""
    config = dataclasses.replace(job.recipe.inference, max_num_seqs=CHANNEL_BATCH)
    return TransformersEngine(job.model.directory, config, job.recipe.codebook_size)


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
    with naming(job.run.results), contextlib.ExitStack() as stack:
        files = {
            s: stack.enter_context(open(job.partial(s), "a", encoding="utf-8")) for s in samples
        }
        bar = stack.enter_context(Progress(total, "answers", job.name, len(answers)))
        requests = [asker.request(questions[i]) for i in left]
        for index, completions in asker.engine.stream(requests, lambda tokens: bar.update(0)):
            number = left[index]
            question = questions[number]
            answers[number] = KeptAnswer(
                number=number,
                elapsed_s=spent_s + time.monotonic() - start,
                computed=[c.prompt_tokens - c.cached_tokens for c in completions],
                row=_row(question, asker.answer(question, completions)),
                environment=environment,
            )
            files[question.sample].write(answers[number].line())
            files[question.sample].flush()
            bar.update()


def _kept(job: Job, questions: list[Question], samples: list[int]) -> dict[int, KeptAnswer]:
    """Number of the question -> answer that is on disk; a line that a kill cut short is taken out
    of its file.

    Raises UserError for a damaged file, and for answers to other questions than those asked now.
    """
    answers: dict[int, KeptAnswer] = {}
    for sample in samples:
        path, whole_bytes = job.partial(sample), 0
        if not path.exists():
            continue
        again = f"delete {path} and give the same command again"
        for count, line in enumerate(read_bytes(path, again).splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue
            where = f"{path}:{count}"
            answer = KeptAnswer.of(parse_line(line, where, again), where, again)
            number = answer.number
            asked = questions[number] if number < len(questions) else None
            if asked is None or asked.sample != sample or not _is_of(answer.row, asked):
                raise UserError(f"{where}: the answer to another question; {again}")
            if number in answers:
                raise UserError(f"{where}: a second answer to question {number}; {again}")
            answers[number] = answer
            whole_bytes += len(line)
        os.truncate(path, whole_bytes)
    return answers


def _is_of(row: ResultRow, question: Question) -> bool:
    """Whether a kept row answers this question as it is asked now: its file may have changed."""
    return Asked(**{name: getattr(row, name) for name in Asked.model_fields}) == _asked(question)


def _asked(question: Question) -> Asked:
    problem = question.problem
    return Asked(
        id=problem.id,
        sample=question.sample,
        problem=problem.problem,
        gold=problem.gold,
        trace_of=question.other.id if question.other else None,
    )


def _publish(job: Job, answers: list[KeptAnswer]) -> None:
    """Scores all answers; the result file first and its meta last, so that a meta file vouches for
    its rows.
    """
    rows = _scored(job, [answer.row for answer in answers])
    job.meta.unlink(missing_ok=True)
    write_rows(job.result, rows)
    meta = _meta(job, rows, answers)
    meta.write(job.meta)
    log(f"{job.name}: {_accuracies(meta)}, {meta.mean_total_tokens:.1f} tokens -> {job.result}")


def _accuracies(meta: ResultMeta) -> str:
    if meta.accuracy is None:
        return "not judged"
    return f"accuracy {meta.accuracy:.3f} (boxed or not: {meta.accuracy_any:.3f})"


def _row(question: Question, answer: Answer) -> ResultRow:
    return ResultRow(**dict(_asked(question)), **dict(answer))


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
                "correct_any": verdict.score_any,
                "scorer": verdict.scorer,
            }
        )
        for row, verdict in zip(rows, verdicts, strict=True)
    ]


def _meta(job: Job, rows: list[ResultRow], answers: list[KeptAnswer]) -> ResultMeta:
    wall_s = max(answer.elapsed_s for answer in answers)
    stages = itertools.zip_longest(*(answer.computed for answer in answers), fillvalue=0)
    return ResultMeta(
        **dict(job.identity()),
        **dict(Totals.counted(rows)),
        rows_sha256=sha256_file(job.result),
        wall_s=wall_s,
        tokens_per_s=sum(row.n_total_tokens for row in rows) / max(wall_s, 1e-9),
        environment=answers[0].environment,
        prompt_tokens_computed=[sum(stage) for stage in stages],
    )
