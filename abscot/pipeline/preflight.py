"""What a recipe will do and need, before anything is spent: the numbers, and what to change."""

from pathlib import Path

import numpy as np

from abscot.common.errors import UserError
from abscot.common.files import is_done
from abscot.common.hardware import GPUS
from abscot.common.log import format_s
from abscot.generation.trace_set import TraceSet
from abscot.method.lineage import Training, listed_baselines, trainings
from abscot.method.phases import loop
from abscot.method.schedules import GROUNDED, loop_epochs
from abscot.method.sequence import document_lengths
from abscot.model.shape import FP32_BYTES, QWEN3, ModelShape
from abscot.packing.make_plan import make_plan
from abscot.pipeline import estimate
from abscot.pipeline.preflight_advice import advice
from abscot.pipeline.preflight_hours import CODEBOOK, Work
from abscot.pipeline.preflight_lengths import Lengths, describe, lengths_of
from abscot.pipeline.preflight_levers import levers
from abscot.pipeline.scorecard import with_measured
from abscot.pipeline.sizing import Sizing
from abscot.recipe.load import local_path
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe
from abscot.training.optimizer import OPTIMIZERS


def preflight(
    recipe: Recipe,
    world_size: int,
    mfu: float | None = None,
    lengths_file: Path | None = None,
    scorecard: Path | None = None,
) -> dict:
    """Rows, phases, memory, hours, disk and advice as plain JSON values; sizes in bytes, times in
    hours. mfu: in place of the model of speed; scorecard: what a GPU was measured to reach.

    Raises UserError for files that cannot be read and for a base whose shape is not known.
    """
    run = Run.of(recipe)
    gpus = with_measured(GPUS, scorecard) if scorecard else GPUS
    shape, lengths = shape_of(recipe, run), lengths_of(recipe, run, lengths_file)
    rounds, baselines = trainings(recipe, run), listed_baselines(recipe, run)
    firsts = [next((t for t in rounds if t.phase == phase), None) for phase in loop()]
    firsts, planned = [*filter(None, firsts), *baselines], [*rounds, *baselines]
    phases = [_phase(first, shape, lengths, world_size) for first in firsts]
    by_name = {phase["phase"]: phase for phase in phases}
    bin_tokens = max(phase["max_bin_tokens"] for phase in phases)
    sizing = Sizing(recipe, shape, world_size, bin_tokens)
    work, speeds = Work(recipe, run, lengths, by_name), [sizing.speed(gpu, mfu) for gpu in gpus]
    memory = [
        {
            **sizing.needs(setting),
            "training_gpu_hours": {
                speed.gpu.name: work.training_s(sizing.in_setting(setting, speed)) / 3600
                for speed in speeds
            },
        }
        for setting in sizing.settings
    ]
    hours = [work.hours(speed) for speed in speeds]
    report = {
        "recipe": recipe.name,
        "base": recipe.model.base,
        "parameters": shape.parameters,
        "trainable": sizing.trainable,
        "world": world_size,
        "mfu": {of["gpu"]: of["mfu"] for of in hours},
        "data": describe(lengths),
        "phases": phases,
        "memory": memory,
        "cpu_rank_bytes": sizing.cpu_rank_memory(),
        "until_channel": recipe.train.until_channel,
        "levers": [] if mfu else levers(recipe, work, speeds),
        "hours": hours,
        "disk": _disk(sizing, lengths, planned, by_name),
    }
    return {**report, "advice": list(advice(sizing, work, speeds, report))}


def _disk(
    sizing: Sizing, lengths: Lengths, planned: list[Training], phases: dict[str, dict]
) -> dict[str, float]:
    recipe, of = sizing.recipe, [phases[training.phase.name] for training in planned]
    traced = [phases[training.phase.name] for training in planned if training.reads_traces]
    traces = sum(phase["trace_rows"] for phase in traced) * recipe.traces.m_max
    every, on_the_way = recipe.train.export_every_steps, 0
    if every:
        steps = [p["steps_per_epoch"] * t.epochs for p, t in zip(of, planned, strict=True)]
        on_the_way = sum((n - 1) // every for n in steps)
    parts = estimate.disk_bytes(
        sizing.shape,
        row_tokens=sum(int(part.sum()) for part in (lengths.prompt, lengths.cot, lengths.answer)),
        trace_tokens=traces,
        models=1 + len(planned) + on_the_way,
        checkpoints=recipe.train.keep_checkpoints,
        saved_bytes=sizing.trainable * OPTIMIZERS[recipe.optimizer.name].bytes_per_parameter,
    )
    if any(training.trace_source == GROUNDED for training in planned):
        # Centroids of each code of a step, means of each place, and a spread.
        vectors = recipe.grounding.tokens_per_step * recipe.codebook_size + recipe.traces.m_max + 2
        parts["codebook"] = float(FP32_BYTES * vectors * sizing.shape.hidden)
    return {**parts, "total": sum(parts.values())}


def shape_of(recipe: Recipe, run: Run) -> ModelShape:
    """The base's shape: of base/, of a local directory, or of a Qwen3 model by its name."""
    if (run.base / "config.json").is_file():
        return ModelShape.of_directory(run.base)
    if recipe.model.base == "world":
        world = recipe.world
        heads = world.hidden_size // 32
        return ModelShape(
            world.hidden_size,
            3 * world.hidden_size,
            world.num_layers,
            heads,
            heads // 2,
            32,
            512,
            True,
        )
    if path := local_path(recipe.model.base):
        return ModelShape.of_directory(path)
    size = recipe.model.base.split("/")[-1].removeprefix("Qwen3-").removesuffix("-Base")
    if recipe.model.base.startswith("Qwen/Qwen3-") and size in QWEN3:
        return QWEN3[size]
    raise UserError(
        f"model.base: {recipe.model.base}: its shape is known once it is downloaded; run "
        "launch/extend.py, or give a local directory"
    )


def _phase(training: Training, shape: ModelShape, lengths: Lengths, world_size: int) -> dict:
    """One epoch of a phase in its first round, planned as it will be; other rounds and epochs are
    like it; or of a baseline. epochs: round by round; steps: of the first.
    """
    recipe, phase, train = training.recipe, training.phase, training.recipe.train
    traces = np.full(len(lengths.prompt), recipe.traces.m_max)
    if lengths.store and is_done(training.traces):
        traces = TraceSet.load(training.traces, lengths.store).lengths()
    texts = {"prompt": lengths.prompt, "cot": lengths.cot, "answer": lengths.answer}
    documents = document_lengths(phase, train, None, {**texts, "trace": traces})
    rows = training.rows(len(lengths.prompt))
    plan = make_plan(
        documents["total"],
        documents["pairs"],
        documents["supervised"],
        seed=recipe.seed,
        epochs=1,
        capacity_tokens=train.capacity_tokens,
        global_batch_examples=train.global_batch_examples,
        global_batch_tokens=train.global_batch_tokens,
        pair_cost=shape.pair_cost,
        round_=training.round,
        phase=phase.name,
        rows=rows,
    )
    sums = {name: int(documents[name][rows].sum()) for name in ("total", "supervised", "pairs")}
    bins = {n: np.add.reduceat(documents[n][plan.rows], plan.bin_starts[:-1]) for n in sums}
    largest = int(plan.bin_costs().argmax())
    epochs = [loop_epochs(recipe, phase, r) for r in range(1, recipe.rounds + 1)]
    return {
        "phase": phase.name,
        "rows": len(rows),
        "trace_rows": len(training.trace_rows(len(lengths.prompt))),
        "epochs": epochs if phase.iterated else [training.epochs],
        "steps_per_epoch": plan.num_steps,
        "steps": plan.num_steps * training.epochs,
        "tokens": sums["total"],
        "supervised_tokens": sums["supervised"],
        "pairs": sums["pairs"],
        "attention_calls": 2 if phase.hidden else 1,
        "bins": plan.num_bins,
        "bins_per_step": float(np.median(np.diff(plan.step_starts))),
        "fill": sums["total"] / (plan.num_bins * train.capacity_tokens),
        "max_bin_tokens": int(bins["total"].max()),
        "largest_bin": {n: int(bins[n][largest]) for n in ("total", "pairs", "supervised")},
        "most_bins_per_rank": -(-int(np.diff(plan.step_starts).max()) // world_size),
        "utilisation": plan.utilisation(world_size),
        "flops": shape.training_flops(
            sums["total"], sums["pairs"], sums["supervised"], recipe.lora is not None
        ),
    }


def stage_walltimes(recipe: Recipe, world_size: int, gpu: str = "H100 80 GB") -> dict[str, str]:
    """Stage -> about how long it takes on `world_size` GPUs; empty where the base's shape is
    not known.
    """
    try:
        hours = next(h for h in preflight(recipe, world_size)["hours"] if h["gpu"] == gpu)
    except UserError:
        return {}
    most = "at most " if recipe.train.until_channel else ""
    walltimes = {}
    for stage, gpu_hours in hours["stage_gpu_hours"].items():
        gpus = 1 if stage == CODEBOOK else world_size
        time = format_s(3600 * gpu_hours / gpus)
        walltimes[stage] = f"about {time} on {gpus} x {gpu}"
        if stage.startswith("train"):
            walltimes[stage] = f"{most}{walltimes[stage]} at MFU {hours['mfu']:.2f}"
        if not gpu_hours:
            made = "a codebook that is there" if stage == CODEBOOK else "random traces"
            walltimes[stage] = f"minutes: {made}"
    return walltimes
