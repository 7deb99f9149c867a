"""Evaluation: models x modes x benchmarks -> one result file each; one engine does all the jobs of
its model.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abscot import benchmarks, judge, scoring, traces
from abscot.benchmarks import BENCHMARKS, Problem
from abscot.config import Recipe, UserError
from abscot.dist import Progress, log, without_ranks
from abscot.inference import TransformersEngine, VllmEngine, machine_dtype
from abscot.modes import MODES, Asker, Question
from abscot.paths import Run, fingerprint, is_done, write_json_atomic, write_text_atomic
from abscot.phases import PHASES
from abscot.rounds import require

CHANNEL_BATCH = 16  # sequences with their CoTs, in transformers' padded cache
BASELINE_MODES = {"sft_cot": ["verbal"], "sft_no_cot": ["no_cot"], "pause": ["pause"]}


@dataclass(frozen=True)
class Job:
    """One result file: a model asked one benchmark in one mode."""

    recipe: Recipe
    run: Run
    model: str
    mode: str
    benchmark: str

    @property
    def name(self) -> str:
        return f"{self.mode}_{self.model}_{self.benchmark}"

    @property
    def result(self) -> Path:
        return self.run.results / f"{self.name}.jsonl"

    @property
    def meta(self) -> Path:
        return self.run.results / f"{self.name}.meta.json"

    def partial(self, sample: int) -> Path:
        """What has been generated of one sample a problem; another model or other settings have
        another file.
        """
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[
            :12
        ]
        return self.run.results / f".{self.name}.{digest}.{sample}.partial"

    @property
    def samples(self) -> list[int]:
        """Samples a problem. A job with a bottleneck is greedy: one."""
        return list(range(1 if MODES[self.mode].cot else self.recipe.eval.samples))

    def questions(self, problems: list[Problem]) -> list[Question]:
        return [Question(p, self.mode, s) for p in problems[: self.limit] for s in self.samples]

    def identity(self) -> dict:
        config = self.recipe.eval
        return {
            "mode": self.mode,
            "round": round_of(self.model, self.recipe.rounds),
            "model": self.model,
            "benchmark": self.benchmark,
            "model_fingerprint": fingerprint(
                model_directory(self.run, self.model, self.recipe.rounds)
            ),
            "seed": self.recipe.seed,
            "samples": config.samples,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "limit": self.limit,
            "max_reasoning_tokens": config.max_reasoning_tokens,
            "max_answer_tokens": config.max_answer_tokens,
            "m_min": self.recipe.traces.m_min,
            "m_max": self.recipe.traces.m_max,
            **(
                {"trace_temperature": self.recipe.traces.temperature}
                if MODES[self.mode].cot
                else {}
            ),
        }

    @property
    def limit(self) -> int | None:
        """Problems that are asked, the first ones; None: all."""
        limits = [
            self.recipe.eval.limit,
            self.recipe.eval.channel_problems if MODES[self.mode].cot else None,
        ]
        return min((n for n in limits if n is not None), default=None)

    def done(self) -> bool:
        if not (self.meta.exists() and self.result.exists()):
            return False
        known = json.loads(self.meta.read_text())
        return all(known.get(key) == value for key, value in self.identity().items())


def model_names(recipe: Recipe) -> list[str]:
    return ["base", *(f"round{r}" for r in range(1, recipe.rounds)), "final"]


def model_directory(run: Run, model: str, rounds: int) -> Path:
    """base/, roundN/, final/, or the export of a phase: pi1_phaseA, sft_cot. Raises UserError for
    any other name.
    """
    round_ = round_of(model, rounds)
    is_phase = model in BASELINE_MODES or model in _bottlenecked(rounds)
    return run.export(model, round_, rounds) if is_phase else run.round_model(round_, rounds)


def _bottlenecked(rounds: int) -> dict[str, int]:
    """The models of phase A, which mode `channel` asks, and their rounds."""
    return {PHASES["A"].tag(r): r for r in range(1, rounds + 1)}


def round_of(model: str, rounds: int) -> int | None:
    """The round a model belongs to; 0: base, None: a baseline. Raises UserError for a name that is
    no model's.
    """
    names = {
        "base": 0,
        **{f"round{r}": r for r in range(1, rounds)},
        "final": rounds,
        **_bottlenecked(rounds),
    }
    if model not in names and model not in BASELINE_MODES:
        raise UserError(
            f"--model {model}: expected all or one of {', '.join([*names, *BASELINE_MODES])}"
        )
    return names.get(model)


def jobs_of(
    recipe: Recipe, run: Run, model: str, modes: list[str] | None, names: list[str] | None
) -> list[Job]:
    """The jobs of one model: the recipe's modes and benchmarks unless others are asked for.

    Raises UserError for an unknown mode or benchmark and for a model that is not there yet.
    """
    if modes is None:
        modes = default_modes(recipe, model)
    for word, given, known in (
        ("mode", modes, MODES),
        ("benchmark", names or recipe.eval.benchmarks, BENCHMARKS),
    ):
        if unknown := [name for name in given if name not in known]:
            raise UserError(f"{word} {unknown[0]}: expected one of {', '.join(known)}")
    require(recipe, model_directory(run, model, recipe.rounds))
    return [
        Job(recipe, run, model, mode, name)
        for name in names or recipe.eval.benchmarks
        for mode in modes
    ]


def default_modes(recipe: Recipe, model: str) -> list[str]:
    if model in _bottlenecked(recipe.rounds):
        return ["channel"]
    return BASELINE_MODES.get(model) or (
        recipe.eval.base_modes if model == "base" else recipe.eval.modes
    )


def evaluate_models(jobs: dict[str, list[Job]], command: list[str]) -> int:
    """Evaluates each model that has work left in a process of its own: an engine keeps its memory
    until that ends.

    command: what evaluates one model when `--model NAME` is put behind it. Returns the exit code of
    the first failure.
    """
    for model, of_model in jobs.items():
        if all(job.done() for job in of_model):
            log(f"{model}: already done")
        elif code := subprocess.call(
            [*command, "--model", model], env=without_ranks(dict(os.environ))
        ):
            return code
    return 0


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
    recipe = jobs[0].recipe
    model = model_directory(jobs[0].run, jobs[0].model, recipe.rounds)
    engine = _masking_engine(jobs[0]) if hides else engine or VllmEngine(model, recipe.inference)
    return Asker(model, recipe, [job.mode for job in jobs], engine)


def _masking_engine(job: Job) -> TransformersEngine:
    """vLLM cannot hide a CoT that is in its cache."""
    config = dataclasses.replace(job.recipe.inference, max_num_seqs=CHANNEL_BATCH)
    return TransformersEngine(model_directory(job.run, job.model, job.recipe.rounds), config)


def evaluate_then_trace(jobs: list[Job]) -> None:
    """The jobs of a round's model, then the traces of the next round's phase A, which the same
    model makes: one engine.
    """
    recipe, run, model = jobs[0].recipe, jobs[0].run, jobs[0].model
    round_ = round_of(model, recipe.rounds)
    if (
        round_ not in range(1, recipe.rounds)
        or model != run.round_model(round_, recipe.rounds).name
    ):
        raise UserError(
            f"--then-traces: no round follows {model}; expected --model round1 to "
            f"round{recipe.rounds - 1}"
        )
    next_traces = traces.open_job(recipe, run, round_ + 1, "A")
    if all(job.done() for job in jobs) and is_done(next_traces.final):
        log(f"{next_traces.final}: already done")
        return
    engine = VllmEngine(model_directory(run, model, recipe.rounds), recipe.inference)
    evaluate(jobs, engine)
    traces.generate(next_traces, engine=engine)


def _generate(
    job: Job, questions: list[Question], left: list[int], answers: dict[int, dict], asker: Asker
) -> None:
    """Adds the answers to the questions `left`. Each is on disk before the next one is waited for."""
    spent_s, start = max((a["elapsed_s"] for a in answers.values()), default=0.0), time.monotonic()
    environment = {
        "engine": type(asker.engine).__name__,
        "dtype": machine_dtype(job.recipe.inference),
        "device": device_name(),
    }
    with contextlib.ExitStack() as stack:
        files = {
            s: stack.enter_context(open(job.partial(s), "a"))
            for s in sorted({questions[i].sample for i in left})
        }
        bar = stack.enter_context(
            Progress(len(left) + len(answers), "answers", job.name, len(answers))
        )
        for index, completions in asker.engine.stream([asker.request(questions[i]) for i in left]):
            number = left[index]
            question = questions[number]
            answers[number] = {
                "number": number,
                "elapsed_s": spent_s + time.monotonic() - start,
                "computed": [c.prompt_tokens - c.cached_tokens for c in completions],
                "row": asker.answer(question, completions),
                "environment": environment,
            }
            files[question.sample].write(json.dumps(answers[number], ensure_ascii=False) + "\n")
            files[question.sample].flush()
            bar.update()


def _kept(job: Job, samples: list[int]) -> dict[int, dict]:
    """Number of the question -> answer that is on disk; a line that a kill cut short is taken out
    of its file.
    """
    answers = {}
    for path in filter(Path.exists, map(job.partial, samples)):
        whole_bytes = 0
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                answer = json.loads(line)
                answers[answer["number"]] = answer
                whole_bytes += len(line)
        os.truncate(path, whole_bytes)
    return answers


def _publish(job: Job, questions: list[Question], answers: list[dict]) -> None:
    """Scores all answers; the result file first and its meta last, so that a meta file vouches for
    its rows.
    """
    rows = [_row(q, a["row"]) for q, a in zip(questions, answers, strict=True)]
    _score(job, rows)
    scores = [row["correct"] for row in rows if row["correct"] is not None]
    wall_s = max(answer["elapsed_s"] for answer in answers)
    tokens = sum(row["n_total_tokens"] for row in rows)
    job.meta.unlink(missing_ok=True)
    write_text_atomic(
        job.result, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )
    meta = {
        **job.identity(),
        "problems": len({row["id"] for row in rows}),
        "accuracy": float(np.mean(scores)) if scores else None,
        "mean_total_tokens": tokens / len(rows),
        "wall_s": wall_s,
        "tokens_per_s": tokens / max(wall_s, 1e-9),
        "cut_prompts": sum(row["prompt_cut"] for row in rows),
        "unfinished_answers": sum(row["finish_reason"] == "length" for row in rows),
        "abstract_tokens_in_responses": sum(row["n_abstract_in_response"] for row in rows),
        "environment": answers[0]["environment"],
        "prompt_tokens_computed": np.sum(
            [a["computed"] for a in answers], axis=0
        ).tolist(),  # a stage each
    }
    write_json_atomic(job.meta, meta)
    accuracy = f"accuracy {meta['accuracy']:.3f}" if scores else "not judged"
    log(f"{job.name}: {accuracy}, {meta['mean_total_tokens']:.1f} tokens an answer -> {job.result}")


def device_name() -> str:
    """The GPU's name, or the processor's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = (
        re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return names[0] if names else platform.machine()


def _row(question: Question, answer: dict) -> dict:
    problem: Problem = question.problem
    return {
        "id": problem.id,
        "sample": question.sample,
        "problem": problem.problem,
        "gold": problem.gold,
        **answer,
    }


def _score(job: Job, rows: list[dict]) -> None:
    """Adds prediction, correct (0..1; null where nobody judged) and scorer to each row."""
    scorer = BENCHMARKS[job.benchmark].scorer
    if scorer == "judge":
        judge.write_answers(job.result.with_suffix(".answers.json"), rows, generator=job.name)
        verdicts = judge.score_all(job.recipe, rows)
    else:
        verdicts = scoring.score_all(
            scorer, [row["response"] for row in rows], [row["gold"] for row in rows]
        )
    for row, verdict in zip(rows, verdicts, strict=True):
        row.update(prediction=verdict.prediction, correct=verdict.score, scorer=verdict.scorer)
