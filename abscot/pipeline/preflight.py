"""What a recipe will do and need, before anything is spent: the numbers, and what to change."""

from pathlib import Path

import numpy as np

from abscot.common.errors import UserError
from abscot.common.files import is_done
from abscot.common.hardware import GPUS
from abscot.common.log import format_s
from abscot.generation.trace_set import TraceSet
from abscot.method.lineage import Training, trainings, trainings_of
from abscot.method.phases import PHASES
from abscot.method.sequence import document_lengths
from abscot.model.shape import QWEN3, ModelShape
from abscot.packing.make_plan import make_plan
from abscot.pipeline import estimate
from abscot.pipeline.preflight_advice import advice
from abscot.pipeline.preflight_lengths import Lengths, describe, lengths_of
from abscot.pipeline.sizing import Sizing
from abscot.recipe.load import local_path
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe
from abscot.training.optimizer import OPTIMIZERS


def preflight(
    recipe: Recipe, world_size: int, mfu: float, lengths_file: Path | None = None
) -> dict:
    """Rows, phases, memory, hours, disk and advice as plain JSON values; sizes in bytes, times in
    hours.

    Raises UserError for lengths that cannot be read and for a base whose shape is not known.
    """
    run = Run.of(recipe)
    shape, lengths = shape_of(recipe, run), lengths_of(recipe, run, lengths_file)
    first_round = trainings_of(recipe, run, 1)
    phases = [_phase(training, shape, lengths, world_size) for training in first_round]
    bin_tokens = max(phase["max_bin_tokens"] for phase in phases)
    sizing = Sizing(recipe, shape, world_size, bin_tokens)
    report = {
        "recipe": recipe.name,
        "base": recipe.model.base,
        "parameters": shape.parameters,
        "trainable": sizing.trainable,
        "world": world_size,
        "mfu": mfu,
        "data": describe(lengths),
        "phases": phases,
        "memory": list(sizing.settings()),
        "cpu_rank_bytes": sizing.cpu_rank_memory(),
        "hours": _hours(recipe, run, shape, lengths, phases, world_size, mfu),
        "disk": _disk(sizing, lengths, phases),
    }
    return {**report, "advice": list(advice(recipe, shape, report))}


def _disk(sizing: Sizing, lengths: Lengths, phases: list[dict]) -> dict[str, float]:
    recipe = sizing.recipe
    traces = sum(phase["rows"] for phase in phases) * recipe.rounds * recipe.traces.m_max
    every = recipe.train.export_every_steps
    on_the_way = sum((phase["steps"] - 1) // every for phase in phases) if every else 0
    parts = estimate.disk_bytes(
        sizing.shape,
        row_tokens=sum(int(part.sum()) for part in (lengths.prompt, lengths.cot, lengths.answer)),
        trace_tokens=traces,
        models=1 + recipe.rounds * (len(phases) + on_the_way),
        checkpoints=recipe.train.keep_checkpoints,
        saved_bytes=sizing.trainable * OPTIMIZERS[recipe.optimizer.name].bytes_per_parameter,
    )
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
    """One epoch of a phase in round 1, planned as it will be; other rounds and epochs are
    like it.
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
        round_=1,
        phase=phase.name,
        rows=rows,
    )
    sums = {name: int(documents[name][rows].sum()) for name in ("total", "supervised", "pairs")}
    bin_tokens = np.add.reduceat(documents["total"][plan.rows], plan.bin_starts[:-1])
    epochs = training.epochs
    return {
        "phase": phase.name,
        "rows": len(rows),
        "epochs": epochs,
        "steps": plan.num_steps * epochs,
        "tokens": sums["total"],
        "supervised_tokens": sums["supervised"],
        "bins": plan.num_bins,
        "bins_per_step": float(np.median(np.diff(plan.step_starts))),
        "fill": sums["total"] / (plan.num_bins * train.capacity_tokens),
        "max_bin_tokens": int(bin_tokens.max()),
        "utilisation": plan.utilisation(world_size),
        "flops": epochs * shape.training_flops(sums["total"], sums["pairs"], sums["supervised"]),
    }


def _hours(
    recipe: Recipe,
    run: Run,
    shape: ModelShape,
    lengths: Lengths,
    phases: list[dict],
    world_size: int,
    mfu: float,
) -> list[dict]:
    """GPU-hours and hours on `world_size` GPUs of all rounds, by GPU kind."""
    answers = []
    for gpu in GPUS:
        stages = {}  # GPU-hours of one stage
        for phase in phases:
            name = phase["phase"]
            prompts = lengths.prompt + (lengths.cot if PHASES[name].sees_cot else 0)
            share = phase["rows"] / len(prompts)
            traces_s = share * estimate.trace_seconds(
                shape, gpu, prompts, recipe.traces.m_max, mfu=mfu
            )
            stages[f"traces {name}"] = traces_s / 3600
            stages[f"train {name}"] = (
                phase["flops"] / phase["utilisation"] / (mfu * gpu.flops) / 3600
            )
        planned = trainings(recipe, run)
        train = sum(stages[f"train {t.phase.name}"] for t in planned)
        trace = sum(stages[f"traces {t.phase.name}"] for t in planned if t.trace_model)
        answers.append(
            {
                "gpu": gpu.name,
                "training_gpu_hours": train,
                "trace_gpu_hours": trace,
                "stage_gpu_hours": stages,
                "wall_hours": (train + trace) / world_size,
            }
        )
    return answers


def stage_walltimes(
    recipe: Recipe, world_size: int, gpu: str = "H100 80 GB", mfu: float = 0.4
) -> dict[str, str]:
    """Stage -> about how long it takes on `world_size` GPUs; empty where the base's shape is
    not known.
    """
    try:
        hours = next(h for h in preflight(recipe, world_size, mfu)["hours"] if h["gpu"] == gpu)[
            "stage_gpu_hours"
        ]
    except UserError:
        return {}
    walltimes = {}
    for training in trainings(recipe, Run.of(recipe)):
        for kind in ("traces", "train"):
            time_s = 3600 * hours[f"{kind} {training.phase.name}"] / world_size
            about = f"about {format_s(time_s)} on {world_size} x {gpu} at MFU {mfu:.2f}"
            random = kind == "traces" and training.trace_model is None
            walltimes[f"{kind}_{training.tag}"] = "minutes: random traces" if random else about
    return walltimes
