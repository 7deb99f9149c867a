"""What a recipe will do and need, before anything is spent: the numbers, and what to change."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from abscot.common import hardware
from abscot.common.draws import rng
from abscot.common.errors import UserError
from abscot.common.files import is_done
from abscot.common.hardware import GPUS
from abscot.common.log import format_s
from abscot.data.shards import ShardStore
from abscot.generation.trace_set import TraceSet
from abscot.method.lineage import Training, trainings, trainings_of
from abscot.method.phases import PHASES
from abscot.method.sequence import document_lengths, limit_tokens
from abscot.method.vocab import abstract_tokens
from abscot.model.shape import GB, QWEN3, ModelShape
from abscot.packing.make_plan import make_plan
from abscot.pipeline import estimate
from abscot.pipeline.estimate import Sharding, memory_bytes
from abscot.recipe.load import ROOT, local_path
from abscot.recipe.run import Run
from abscot.recipe.schema import LoraConfig, Recipe

PERCENTILES = (0, 10, 25, 50, 75, 90, 99, 100)
UNKNOWN_ROWS = (
    600_000  # of a recipe that uses all rows of a source nobody has read yet: the paper's number
)
USABLE = 0.95  # share of a GPU's memory that a process can have


@dataclass(frozen=True)
class Lengths:
    """Token counts of the rows, int64 [rows] each, and where they come from."""

    prompt: np.ndarray
    cot: np.ndarray
    answer: np.ndarray
    origin: str
    read: int
    truncated: int
    rejected: dict[str, int]  # reason -> rows
    lost_tokens: dict[str, int]  # reason -> tokens, where they were counted
    store: ShardStore | None = None


def preflight(recipe: Recipe, world: int, mfu: float, lengths_file: Path | None = None) -> dict:
    """Rows, phases, memory, hours, disk and advice as plain JSON values; sizes in bytes, times in
    hours.

    Raises UserError for lengths that cannot be read and for a base whose shape is not known.
    """
    run = Run.of(recipe)
    shape, lengths = shape_of(recipe, run), lengths_of(recipe, run, lengths_file)
    phases = [_phase(training, shape, lengths, world) for training in trainings_of(recipe, run, 1)]
    memory = list(_memory(recipe, shape, world, max(phase["max_bin_tokens"] for phase in phases)))
    cpu_rank = estimate.cpu_memory_bytes(
        shape,
        _sharding(recipe),
        world,
        max(phase["max_bin_tokens"] for phase in phases),
        checkpointing=recipe.model.gradient_checkpointing,
        chunk_tokens=recipe.model.loss_chunk_tokens,
        trainable=_trainable(recipe, shape),
        bf16_in_hardware=hardware.cpu_has_bf16(),
    )
    hours = _hours(recipe, run, shape, lengths, phases, world, mfu)
    trainable = _trainable(recipe, shape) or shape.parameters
    used = sum(int(part.sum()) for part in (lengths.prompt, lengths.cot, lengths.answer))
    traces = sum(phase["rows"] for phase in phases) * recipe.rounds * recipe.traces.m_max
    disk = estimate.disk_bytes(
        shape, recipe.rounds, recipe.train.keep_checkpoints, used, traces, trainable
    )
    report = {
        "recipe": recipe.name,
        "base": recipe.model.base,
        "parameters": shape.parameters,
        "trainable": trainable,
        "world": world,
        "mfu": mfu,
        "data": _data(lengths),
        "phases": phases,
        "memory": memory,
        "cpu_rank_bytes": cpu_rank,
        "hours": hours,
        "disk": {**disk, "total": sum(disk.values())},
    }
    return {**report, "advice": list(_advice(recipe, shape, report))}


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
        "launch/extend.py,"
        " or give a local directory"
    )


def lengths_of(recipe: Recipe, run: Run, file: Path | None) -> Lengths:
    """From `file` (a line a row: prompt, CoT and answer tokens), from the shards, or assumed."""
    if file is None and is_done(run.shards):
        return _prepared_lengths(run)
    if file is not None:
        prompt, cot, answer = _read_lengths(file)
        origin = f"{file}"
    elif recipe.data.source == "world":
        prompt, cot, answer = (
            np.full(recipe.world.rows, n) for n in (38, 59, 7)
        )  # its rows are about this long
        origin = "assumed (not prepared yet)"
    else:
        rows = recipe.data.rows or UNKNOWN_ROWS
        total = estimate.dolci_like_lengths(rows, rng("preflight", recipe.seed))
        prompt, answer = np.minimum(200, total // 3), np.minimum(600, total // 3)
        cot, origin = (
            total - prompt - answer,
            f"assumed: {rows:,} rows with the lengths of Dolci-Think-SFT-7B (not prepared yet)",
        )
    total = prompt + cot + answer
    limit = limit_tokens(recipe)
    fits, truncated = total <= limit, 0
    if recipe.data.long_rows != "drop":
        truncated = int((~fits & (prompt + answer < limit)).sum())
        cot = np.minimum(cot, np.maximum(0, limit - prompt - answer))
        fits = prompt + cot + answer <= limit
    if not fits.any():
        raise UserError(
            f"train.capacity_tokens: {recipe.train.capacity_tokens} holds none of the rows "
            f"({origin})"
        )
    lost = int((~fits).sum())
    return Lengths(
        prompt[fits],
        cot[fits],
        answer[fits],
        origin,
        len(total),
        truncated,
        {"too_long": lost} if lost else {},
        {"too_long": int(total[~fits].sum())} if lost else {},
    )


def _prepared_lengths(run: Run) -> Lengths:
    store = ShardStore(run.shards)
    counts, lost = store.manifest["counts"], {}
    if counts["rejected"].get("too_long"):
        with open(run.shards / "rejected.jsonl") as lines:
            long_rows = [line for line in map(json.loads, lines) if line["reason"] == "too_long"]
        lost["too_long"] = sum(
            int(line["detail"].split()[0]) for line in long_rows
        )  # "40000 tokens, room for .."
    tokens = {name: values.astype(np.int64) for name, values in store.lengths().items()}
    return Lengths(
        **tokens,
        origin=f"{run.shards}",
        read=counts["read"],
        truncated=counts["truncated"],
        rejected=counts["rejected"],
        lost_tokens=lost,
        store=store,
    )


def _read_lengths(file: Path) -> np.ndarray:
    """int64 [3, rows]. Raises UserError with the file and what was expected."""
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64, ndmin=2, comments=None)
        if table.shape[1] != 3 or not len(table) or table.min() < 0:
            raise ValueError(f"{table.shape[1]} columns")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: expected a line a row, prompt,cot,answer tokens, e.g. 120,20000,600 ({error})"
        ) from None
    return table.T


def _data(lengths: Lengths) -> dict:
    columns = {"prompt": lengths.prompt, "cot": lengths.cot, "answer": lengths.answer}
    columns["total"] = sum(columns.values())
    percentiles = {
        name: {
            **{f"p{p}": int(np.percentile(v, p, method="nearest")) for p in PERCENTILES},
            "sum": int(v.sum()),
        }
        for name, v in columns.items()
    }
    return {
        "origin": lengths.origin,
        "read": lengths.read,
        "kept": len(lengths.prompt),
        "truncated": lengths.truncated,
        "rejected": lengths.rejected,
        "lost_tokens": lengths.lost_tokens,
        "lengths": percentiles,
    }


def _phase(training: Training, shape: ModelShape, lengths: Lengths, world: int) -> dict:
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
        "bins_a_step": float(np.median(np.diff(plan.step_starts))),
        "fill": sums["total"] / (plan.num_bins * train.capacity_tokens),
        "max_bin_tokens": int(bin_tokens.max()),
        "utilisation": plan.utilisation(world),
        "flops": epochs * shape.training_flops(sums["total"], sums["pairs"], sums["supervised"]),
    }


def _trainable(recipe: Recipe, shape: ModelShape) -> int | None:
    """Parameters that LoRA trains; None: all."""
    return (
        shape.lora_parameters(recipe.lora, len(abstract_tokens(recipe.codebook_size)))
        if recipe.lora
        else None
    )


def _sharding(recipe: Recipe) -> Sharding:
    path = ROOT / recipe.train.deepspeed
    try:
        return Sharding.of_config(json.loads(path.read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"train.deepspeed: {path}: not a DeepSpeed config ({error})") from None


def _memory(recipe: Recipe, shape: ModelShape, world: int, bin_tokens: int) -> Iterator[dict]:
    """The recipe's own setting first, then the others."""
    own, lora = _sharding(recipe), recipe.lora or LoraConfig()
    full, adapters = None, shape.lora_parameters(lora, len(abstract_tokens(recipe.codebook_size)))
    options = [(own, _trainable(recipe, shape), "the recipe: ")]
    options += [(Sharding(stage), full, "") for stage in (1, 2, 3)]
    options += [(Sharding(3, offload_optimizer=True), full, ""), (Sharding(3), adapters, "")]
    for sharding, trainable, mark in options:
        parts = memory_bytes(
            shape,
            sharding,
            world,
            bin_tokens,
            checkpointing=recipe.model.gradient_checkpointing,
            chunk_tokens=recipe.model.loss_chunk_tokens,
            trainable=trainable,
        )
        fits = {gpu.name: parts["total"] <= USABLE * gpu.memory_gb * GB for gpu in GPUS}
        kind = f"LoRA r={lora.r}, " if trainable else ""
        yield {"setting": f"{mark}{kind}{sharding.name}", "bytes": parts, "fits": fits}


def _hours(
    recipe: Recipe,
    run: Run,
    shape: ModelShape,
    lengths: Lengths,
    phases: list[dict],
    world: int,
    mfu: float,
) -> list[dict]:
    """GPU-hours and hours on `world` GPUs of all rounds, by GPU kind."""
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
                "wall_hours": (train + trace) / world,
            }
        )
    return answers


def stage_walltimes(
    recipe: Recipe, world: int, gpu: str = "H100 80 GB", mfu: float = 0.4
) -> dict[str, str]:
    """Stage -> about how long it takes on `world` GPUs; empty where the base's shape is
    not known.
    """
    try:
        hours = next(h for h in preflight(recipe, world, mfu)["hours"] if h["gpu"] == gpu)[
            "stage_gpu_hours"
        ]
    except UserError:
        return {}
    walltimes = {}
    for training in trainings(recipe, Run.of(recipe)):
        for kind in ("traces", "train"):
            time_s = 3600 * hours[f"{kind} {training.phase.name}"] / world
            about = f"about {format_s(time_s)} on {world} x {gpu} at MFU {mfu:.2f}"
            random = kind == "traces" and training.trace_model is None
            walltimes[f"{kind}_{training.tag}"] = "minutes: random traces" if random else about
    return walltimes


def _advice(recipe: Recipe, shape: ModelShape, report: dict) -> Iterator[str]:
    own, world = report["memory"][0], report["world"]
    bin_tokens = max(phase["max_bin_tokens"] for phase in report["phases"])
    for gpu in GPUS:
        if not own["fits"][gpu.name]:
            remedy = _what_fits(recipe, shape, gpu, world, bin_tokens)
            yield f"{gpu.name}: needs {own['bytes']['total'] / GB:.0f} GB a GPU; {remedy}"
    for phase in report["phases"]:
        name, busy = phase["phase"], phase["utilisation"]
        if busy < 0.95:
            bins = f"{phase['bins_a_step']:.0f} bins a step"
            better = _better_batch(recipe, phase, world)
            yield (
                f"phase {name}: {world} ranks are busy {busy:.0%} of the time with {bins}; "
                + better
            )
        if phase["steps"] < 20:
            more = "a smaller global batch or more epochs make more"
            yield f"phase {name}: only {phase['steps']} steps; {more}"


def _what_fits(
    recipe: Recipe, shape: ModelShape, gpu: hardware.Gpu, world: int, bin_tokens: int
) -> str:
    """The first remedy that fits, from the mildest."""
    own, trainable, limit = (
        _sharding(recipe),
        _trainable(recipe, shape),
        USABLE * gpu.memory_gb * GB,
    )

    def memory_of(
        sharding: Sharding, trained: int | None, ranks: int = world, checkpointing: bool = True
    ) -> dict:
        return memory_bytes(
            shape,
            sharding,
            ranks,
            bin_tokens,
            checkpointing=checkpointing,
            chunk_tokens=recipe.model.loss_chunk_tokens,
            trainable=trained,
        )

    remedies = (
        [("model.gradient_checkpointing=true", own, trainable)]
        if not recipe.model.gradient_checkpointing
        else []
    )
    remedies += [
        ("train.deepspeed=ds_configs/zero3.json", Sharding(3), trainable),
        (
            "train.deepspeed=ds_configs/zero3_offload.json",
            Sharding(3, offload_optimizer=True),
            trainable,
        ),
    ]
    for name, sharding, trained in remedies:
        if memory_of(sharding, trained)["total"] <= limit:
            return f"--set {name} fits"
    needed = estimate.smallest_world(
        limit,
        lambda ranks: memory_of(replace(Sharding(3), offload_optimizer=True), trainable, ranks),
    )
    if needed:
        return f"ZeRO-3 with offload fits on {needed} GPUs"
    if (
        not recipe.lora
        and memory_of(
            Sharding(3),
            shape.lora_parameters(LoraConfig(), len(abstract_tokens(recipe.codebook_size))),
        )["total"]
        <= limit
    ):
        return "LoRA with ZeRO-3 fits"
    none = f"bins of {bin_tokens:,} tokens do not fit on any number of them"
    return f"{none}; lower train.capacity_tokens"


def _better_batch(recipe: Recipe, phase: dict, world: int) -> str:
    """A global batch of four micro-steps, in the recipe's own unit."""
    if recipe.train.global_batch_tokens:
        tokens = 4 * world * recipe.train.capacity_tokens
        return f"--set train.global_batch_tokens={tokens} gives 4 full micro-steps"
    examples = int(4 * world * phase["rows"] / phase["bins"])
    return f"--set train.global_batch_examples={examples} gives about 4 full micro-steps"
