"""Part trainer of `bench.py gpu`: launch/train.py as its launcher starts it, on one or two ranks,
over random rows of the lengths that are asked for.

A case is a short run: it is killed once enough steps stand in its train log. One case is trained to
its end instead: stopped by SIGTERM behind its first checkpoint, started again, exported.
"""

import contextlib
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from abscot.bench.gpu_command import Command
from abscot.bench.gpu_part import (
    BINS,
    TINY,
    TINY_BINS,
    LeftOut,
    Part,
    documents_of,
    file_name,
    shape_of,
    size_of,
)
from abscot.bench.gpu_run import Workshop
from abscot.common.process import free_port
from abscot.generation.trace_jobs import generate, open_job
from abscot.method.lineage import Training
from abscot.method.phases import loop
from abscot.model.shape import ModelShape
from abscot.pipeline.sizing import USABLE, Sizing
from abscot.pipeline.stages import train_stage
from abscot.recipe.schema import Recipe
from abscot.training.record import StepEntry, TrainLog

MOST_RANKS = 2
WARM_UP_STEPS = 2  # are slower: kernels are built, memory is found
MEASURED_STEPS, FEWEST_STEPS = 8, 4  # with those; as many as there are where the time ends
MOST_STEPS = 400  # planned, never reached
STEPS_TO_THE_END = 12
NEEDS_S = {"0.6B": 60, "1.7B": 75, "4B": 100, TINY: 15}  # the first start of a shape, with its base
# What launch/train.py says, and where it then is.
BUILT, REHEARSED, STEPPED = "parameters trained", "rehearsed", "steps done in"
STOPPED, GOES_ON = "asked to stop, saved", "goes on from"


@dataclass(frozen=True)
class Case:
    """kind: full or lora. keys: of the recipe beside that, and what they are called here."""

    shape: str
    kind: str
    deepspeed: str
    bin_tokens: int
    keeps_attention: bool = False
    deterministic: bool = False
    to_the_end: bool = False

    @property
    def name(self) -> str:
        size = size_of(self.bin_tokens)
        kept = "selective" if self.keeps_attention else "reentrant"
        words = [self.shape, self.kind, self.deepspeed, size, kept]
        words += ["deterministic"] * self.deterministic + ["to its end"] * self.to_the_end
        return " ".join(words)

    def keys(self) -> dict:
        """Of the recipe."""
        keys = {
            "train__deepspeed": f"ds_configs/{self.deepspeed}.json",
            "train__capacity_tokens": self.bin_tokens,
            "train__global_batch_examples": "null",
            "train__checkpoint_every_minutes": "null",
            "train__deterministic": str(self.deterministic).lower(),
            "model__keep_attention": str(self.keeps_attention).lower(),
        }
        return keys | ({"lora__r": 32} if self.kind == "lora" else {})


def cases(tiny: bool) -> list[Case]:
    """The most telling ones first: a slot may have no time for all."""
    if tiny:
        (tokens,) = TINY_BINS
        return [Case(TINY, "full", "cpu", tokens, to_the_end=True)]
    long, short = max(BINS), min(BINS)
    return [
        Case("4B", "lora", "zero3", long, keeps_attention=True),
        Case("4B", "lora", "zero3", long),
        Case("4B", "lora", "zero1", long, keeps_attention=True),
        Case("4B", "lora", "zero3", short, keeps_attention=True),
        Case("0.6B", "full", "zero3", short, keeps_attention=True, to_the_end=True),
        Case("1.7B", "full", "zero3", long, keeps_attention=True),
        Case("1.7B", "full", "zero1", long, keeps_attention=True),
        Case("4B", "full", "zero3", long, keeps_attention=True),
        Case("4B", "full", "zero1", long, keeps_attention=True),
        Case("0.6B", "full", "zero3", short, keeps_attention=True),
        Case("0.6B", "full", "zero3", short, keeps_attention=True, deterministic=True),
        Case("0.6B", "full", "zero1", short, keeps_attention=True),
        Case("1.7B", "full", "zero3", long),
        Case("4B", "full", "zero3", long),
        Case("4B", "full", "zero3", short, keeps_attention=True),
        Case("4B", "lora", "zero1", long),
        Case("4B", "lora", "zero3", short),
    ]


def measure(part: Part) -> None:
    workshop = Workshop(part.work)
    for case in cases(part.tiny):
        part.case(case.name, NEEDS_S[case.shape], lambda c=case: _measured(part, workshop, c))


def _measured(part: Part, workshop: Workshop, case: Case) -> dict:
    keys = case.keys()
    ranks = ranks_of(part)
    if case.to_the_end:
        keys["train__checkpoint_every_steps"] = STEPS_TO_THE_END // 3
    steps = STEPS_TO_THE_END if case.to_the_end else MOST_STEPS
    with begun(workshop, case, ranks, steps, keys) as training:
        planned = planned_bytes(part, training.recipe, shape_of(case.shape))
        drive = _to_the_end if case.to_the_end else _some_steps
        return {"ranks": ranks, "planned_bytes": planned, **drive(part, case, training)}


def ranks_of(part: Part) -> int:
    return min(part.machine["gpus"], MOST_RANKS) if part.on_gpu else MOST_RANKS


@contextlib.contextmanager
def begun(workshop: Workshop, case: Case, ranks: int, steps: int, keys: dict) -> Iterator[Training]:
    """The first training of a run, ready to start: so many steps of a bin on each rank. The run is
    gone in the end.
    """
    rows = documents_of(case.bin_tokens) * (steps * ranks)
    batch = {"train__global_batch_tokens": case.bin_tokens * ranks, "train__num_gpus": ranks}
    traces = {"traces__m_min": 4, "traces__m_max": max(64, rows[0][2])}
    recipe, run = workshop.run(case.shape, file_name(case.name), rows, **keys, **batch, **traces)
    training = Training(recipe, run, loop()[0], 1)
    try:
        generate(open_job(training))
        yield training
    finally:
        shutil.rmtree(run.root)


def planned_bytes(part: Part, recipe: Recipe, shape: ModelShape) -> float:
    """What plan.py says a rank needs. Raises LeftOut where the GPUs here have less."""
    sizing = Sizing(recipe, shape, recipe.train.num_gpus, recipe.train.capacity_tokens)
    if not part.on_gpu:
        return sizing.cpu_rank_memory()["total"]
    needed, has = sizing.memory(sizing.sharding)["total"], part.machine["memory_bytes"]
    if needed > USABLE * has:
        raise LeftOut(f"plan.py says {needed / 1e9:.0f} GB a rank, the GPU has {has / 1e9:.0f} GB")
    return needed


def started(part: Part, case: str, training: Training) -> Command:
    """launch/train.py, as a stage of its run starts it."""
    launch = train_stage(training).launch
    command = launch.command(training.run.config, free_port())
    return Command(command, part.log(case), launch.environment(command))


def _some_steps(part: Part, case: Case, training: Training) -> dict:
    """Raises TimeoutExpired where too few were taken in the part's time."""
    with started(part, case.name, training) as command:
        try:
            code = command.wait(part.left_s, lambda: len(steps_of(training)) >= MEASURED_STEPS)
        except subprocess.TimeoutExpired:
            code = None
            if len(steps_of(training)) < FEWEST_STEPS:
                raise
        if code:
            raise RuntimeError(command.why())
        return {**speed(training), **_seconds(command)}


def _to_the_end(part: Part, case: Case, training: Training) -> dict:
    """Stopped by SIGTERM behind its first checkpoint, and started again."""
    with started(part, f"{case.name} 1", training) as command:
        command.wait(part.left_s, lambda: any(training.checkpoints.glob("step_*/DONE")))
        asked_s = time.monotonic()
        command.signal_ranks(signal.SIGTERM)
        command.wait(part.left_s)
        stop_s = time.monotonic() - asked_s
        if command.seconds_at(STOPPED) is None:
            raise RuntimeError(f"not stopped and saved as asked: {command.why()}")
        found = {**_seconds(command), "stop_s": stop_s}
    with started(part, f"{case.name} 2", training) as command:
        if command.wait(part.left_s):
            raise RuntimeError(command.why())
        stepped_s, exported_s = command.seconds_at(STEPPED), command.seconds_at(training.export)
        resume_s, export_s = command.seconds_at(GOES_ON), exported_s - stepped_s
        return {**speed(training), **found, "resume_s": resume_s, "export_s": export_s}


def _seconds(command: Command) -> dict[str, float | None]:
    """To the model engine, and of the rehearsal."""
    built_s, rehearsed_s = command.seconds_at(BUILT), command.seconds_at(REHEARSED)
    known = built_s is not None and rehearsed_s is not None
    return {"start_s": built_s, "rehearsal_s": rehearsed_s - built_s if known else None}


def steps_of(training: Training) -> list[StepEntry]:
    """The steps that stand in its log by now: it is written every few seconds."""
    log = training.train_log
    return TrainLog.read(log).steps if log.exists() else []


def speed(training: Training) -> dict[str, float | None]:
    """Medians of the steps behind the first ones, by its own train log; peak: of rank 0."""
    steps = steps_of(training)
    later = steps[min(WARM_UP_STEPS, len(steps) - 1) :]
    mfus = [step.mfu for step in later if step.mfu is not None]
    return {
        "steps": len(steps),
        "tokens_per_s": statistics.median(step.tokens_per_s for step in later),
        "mfu": statistics.median(mfus) if mfus else None,
        "peak_bytes": max(step.peak_bytes for step in steps),
    }
