"""What a preflight would change: settings that do not fit, ranks that wait, too few steps, levers
that are off, a slower ZeRO stage, silence that would pass for a hang.
"""

import math
from collections.abc import Iterator

from abscot.common.hardware import Gpu
from abscot.model.shape import BF16_BYTES, FP32_BYTES, GB
from abscot.pipeline import estimate
from abscot.pipeline.estimate import Sharding
from abscot.pipeline.preflight_hours import Work
from abscot.pipeline.sizing import USABLE, Sizing
from abscot.pipeline.speed import Speed
from abscot.recipe.schema import Recipe
from abscot.recipe.schema_train import LoraConfig
from abscot.training.optimizer import OPTIMIZERS

# Of training: what a change must save to be worth a line.
WORTH_SHARE, WORTH_GPU_HOURS = 0.01, 0.1
DISK_BYTES_PER_S = 1e9  # read, hashed or written by a rank


def advice(sizing: Sizing, work: Work, speeds: list[Speed], report: dict) -> Iterator[str]:
    recipe, world = sizing.recipe, sizing.world_size
    own, kept = report["memory"][0], report["data"]["kept"]
    if recipe.data.rows and kept < recipe.data.rows:
        yield (
            f"data.rows: {recipe.data.rows:,} are asked for, but only {kept:,} rows can be trained "
            "on; raise train.capacity_tokens, or cut CoTs by data.long_rows"
        )
    for speed in speeds:
        gpu = speed.gpu
        if not own["fits"][gpu.name]:
            needed = f"needs {own['bytes']['total'] / GB:.0f} GB per GPU"
            yield f"{gpu.name}: {needed}; {_what_fits(sizing, gpu)}"
    for phase in report["phases"]:
        name, busy = phase["phase"], phase["utilisation"]
        if busy < 0.95:
            bins = f"{phase['bins_per_step']:.0f} bins per step"
            better = _better_batch(recipe, phase, world)
            yield (
                f"phase {name}: {world} ranks are busy {busy:.0%} of the time with {bins}; "
                + better
            )
        if phase["steps"] < 20:
            more = "a smaller global batch or more epochs make more"
            yield f"phase {name}: only {phase['steps']} steps; {more}"
    yield from _levers_off(report)
    yield from _faster_stages(sizing, report)
    yield from _silence(sizing, work, speeds, report)


def _levers_off(report: dict) -> Iterator[str]:
    for lever in report["levers"]:
        every = report["memory"][0]["training_gpu_hours"]
        hours = {g: h for g, h in lever["gpu_hours"].items() if _is_worth_it(h, every[g])}
        if not lever["on"] and hours:
            costs = ", ".join(
                f"{h:,.1f} of {every[gpu]:,.1f} GPU-h on {gpu}" for gpu, h in hours.items()
            )
            off = f"{lever['name']} is off ({lever['state']})"
            yield f"{off}, which costs {costs}; get it by {lever['get']}"


def _faster_stages(sizing: Sizing, report: dict) -> Iterator[str]:
    """ZeRO stages that train the same parameters in less time, on the GPUs where they fit."""
    own, *others = zip(sizing.settings, report["memory"], strict=True)
    for setting, row in others:
        if (setting.lora is None) != (own[0].lora is None) or setting.sharding.offload_optimizer:
            continue
        saved = {
            gpu: own[1]["training_gpu_hours"][gpu] - hours
            for gpu, hours in row["training_gpu_hours"].items()
            if row["fits"][gpu]
        }
        worth = [
            f"{h:,.1f} GPU-h on {gpu}"
            for gpu, h in saved.items()
            if _is_worth_it(h, own[1]["training_gpu_hours"][gpu])
        ]
        if worth:
            file = f"ds_configs/zero{setting.sharding.stage}.json"
            yield (
                f"--set train.deepspeed={file} fits, and communicates less on "
                f"{sizing.world_size} GPUs: it saves {', '.join(worth)}"
            )


def _is_worth_it(saved_hours: float, hours: float) -> bool:
    return saved_hours > max(WORTH_GPU_HOURS, WORTH_SHARE * hours)


def _silence(sizing: Sizing, work: Work, speeds: list[Speed], report: dict) -> Iterator[str]:
    """Healthy work that prints nothing for hang_minutes, on the slowest GPU that it fits on."""
    recipe, fits = sizing.recipe, report["memory"][0]["fits"]
    speed = next((speed for speed in speeds if fits[speed.gpu.name]), speeds[-1])
    silent_s = {
        f"a step of phase {name} on {sizing.world_size} x {speed.gpu.name}": (
            work.longest_step_s(name, speed)
        )
        for name in work.phases
    }
    model_bytes = BF16_BYTES * sizing.shape.parameters
    checkpoint_bytes = sizing.trainable * OPTIMIZERS[recipe.optimizer.name].bytes_per_parameter
    data = report["data"]["lengths"]["total"]["sum"]
    silent_s |= {
        "a checkpoint": checkpoint_bytes / DISK_BYTES_PER_S,
        "an export": model_bytes / DISK_BYTES_PER_S,
        "the check of shards and model": (FP32_BYTES * data + model_bytes) / DISK_BYTES_PER_S,
    }
    for what, seconds in silent_s.items():
        minutes = seconds / 60
        if minutes >= recipe.hang_minutes:
            yield (
                f"hang_minutes: {what} takes about {minutes:.1f} minutes without a word, and "
                f"{recipe.hang_minutes:g} end a stage; --set hang_minutes={math.ceil(2 * minutes)}"
            )


def _what_fits(sizing: Sizing, gpu: Gpu) -> str:
    """The first remedy that fits, from the mildest."""
    recipe, limit = sizing.recipe, USABLE * gpu.memory_gb * GB
    zero3, offloaded = Sharding(3), Sharding(3, offload_optimizer=True)
    remedies = [
        ("train.deepspeed=ds_configs/zero3.json", zero3),
        ("train.deepspeed=ds_configs/zero3_offload.json", offloaded),
    ]
    if not recipe.model.gradient_checkpointing:
        remedies.insert(0, ("model.gradient_checkpointing=true", sizing.sharding))
    elif sizing.memory(sizing.sharding, keep_attention=False)["total"] <= limit:
        return "--set model.keep_attention=false fits"
    for name, sharding in remedies:
        if sizing.memory(sharding, checkpointing=True)["total"] <= limit:
            return f"--set {name} fits"
    needed = estimate.smallest_world_size(
        limit,
        lambda ranks: sizing.memory(offloaded, world_size=ranks, checkpointing=True),
    )
    if needed:
        return f"ZeRO-3 with offload fits on {needed} GPUs"
    adapters = sizing.trained_by(recipe.lora or LoraConfig())
    with_lora = sizing.memory(zero3, trainable=adapters, checkpointing=True)
    if not recipe.lora and with_lora["total"] <= limit:
        return "LoRA with ZeRO-3 fits"
    none = f"bins of {sizing.bin_tokens:,} tokens do not fit on any number of them"
    return f"{none}; lower train.capacity_tokens"


def _better_batch(recipe: Recipe, phase: dict, world: int) -> str:
    """A global batch of four micro-steps, in the recipe's own unit."""
    if recipe.train.global_batch_tokens:
        tokens = 4 * world * recipe.train.capacity_tokens
        return f"--set train.global_batch_tokens={tokens} gives 4 full micro-steps"
    examples = int(4 * world * phase["rows"] / phase["bins"])
    return f"--set train.global_batch_examples={examples} gives about 4 full micro-steps"
