"""One command as several processes on this machine, each with its own engine."""

import os
import subprocess

from abscot.common import gpus
from abscot.common.errors import UserError
from abscot.common.files import is_done
from abscot.common.log import log
from abscot.common.process import PARENT
from abscot.common.ranks import cores_per_rank, without_ranks
from abscot.evaluation.evaluate import evaluate
from abscot.evaluation.jobs import Job
from abscot.generation.trace_jobs import TraceJob, generate, open_job
from abscot.generation.vllm_engine import VllmEngine
from abscot.method.lineage import Model, Training, round_models, trainings
from abscot.pipeline.lease import exclusive
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

MOST_ON_CPU = 4  # processes that code CoTs, without a GPU


def answers_of(jobs: list[Job], sample: int | None = None) -> list[str]:
    """The pieces of the run that an evaluation writes; sample: only these answers."""
    return [
        f"{job.name} sample {s}"
        for job in jobs
        for s in (job.samples if sample is None else [sample])
    ]


def chunks_of(job: TraceJob, shard: int = 0, of: int = 1) -> list[str]:
    """The pieces of the run that a shard of a trace set writes."""
    return [f"traces {job.tag} chunk {c}" for c in range(shard, len(job.chunks()), of)]


def evaluate_models(jobs: dict[str, list[Job]], command: list[str]) -> int:
    """Evaluates each model that has work left in a process of its own: an engine keeps its memory
    until that ends.

    command: what evaluates one model when `--model NAME` is put behind it. Returns the exit code of
    the first failure.
    """
    for model, of_model in jobs.items():
        if all(job.done() for job in of_model):
            log(f"{model}: already done")
        elif code := subprocess.call([*command, "--model", model], env=_environment()):
            return code
    return 0


def evaluate_then_trace(jobs: list[Job]) -> None:
    """The jobs of a round's model, then the traces of the training behind it, which the same model
    makes: one engine.
    """
    recipe, run, model = jobs[0].recipe, jobs[0].run, jobs[0].model
    next_traces = open_job(training_behind(recipe, run, model))
    if all(job.done() for job in jobs) and is_done(next_traces.final):
        log(f"{next_traces.final}: already done")
        return
    with exclusive(run.root, *answers_of(jobs), *chunks_of(next_traces)):
        engine = VllmEngine(model.directory, recipe.inference, recipe.codebook_size)
        evaluate(jobs, engine)
        generate(next_traces, engine=engine)


def training_behind(recipe: Recipe, run: Run, model: Model) -> Training:
    """The training that starts from a round's model and has its traces from it. Raises UserError
    where there is none, and where they come from elsewhere.
    """
    follows = [t for t in trainings(recipe, run) if t.start == model.directory]
    if model not in round_models(recipe, run)[1:] or not follows:
        names = ", ".join(m.name for m in round_models(recipe, run)[1:-1])
        expected = f"expected --model {names}" if names else "the recipe has one round"
        raise UserError(f"--then-traces: no round follows {model.name}; {expected}")
    if follows[0].trace_model is None:
        raise UserError(
            f"--then-traces: the traces of {follows[0].title} are {follows[0].trace_source}, and "
            f"{model.name} makes none; leave it out"
        )
    return follows[0]


def engines_here(recipe: Recipe) -> int:
    """vLLM engines that the GPUs of this machine hold; one where there are none."""
    return max(1, gpus.count() // recipe.inference.tensor_parallel)


def processes_for_grounding(shards: int) -> int:
    """That code CoTs on this machine: one a GPU, else one a core, and few, for each loads the
    base; `shards` at least.
    """
    return max(shards, gpus.count() or min(MOST_ON_CPU, cores_per_rank()))


def generate_on_this_machine(command: list[str], of: int, gpus_each: int) -> int:
    """Runs `command --shard i --of n` for all n shards at the same time, each with its own GPUs
    where there are any.

    Returns 0, or the exit code of a shard that failed after all have ended: what the others made is
    kept. Raises UserError where a shard wants more GPUs than are visible, MachineError where torch
    cannot use them.
    """
    here = gpus.usable()
    if here and gpus_each > len(here):
        raise UserError(
            f"inference.tensor_parallel is {gpus_each}: expected at most {len(here)}, the GPUs "
            f"that are visible here; lower it with --set inference.tensor_parallel={len(here)}"
        )
    shards = []
    for shard in range(of):
        environ = _environment()
        if here:
            mine = [here[(shard * gpus_each + i) % len(here)] for i in range(gpus_each)]
            environ[gpus.VISIBLE] = ",".join(mine)
        shards.append(
            subprocess.Popen([*command, "--shard", str(shard), "--of", str(of)], env=environ)
        )
    codes = [process.wait() for process in shards]
    return next((code for code in codes if code), 0)


def _environment() -> dict[str, str]:
    """Of a process that ends with this one."""
    return {**without_ranks(dict(os.environ)), PARENT: str(os.getpid())}
