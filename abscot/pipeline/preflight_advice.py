"""What a preflight would change: settings that do not fit, ranks that wait, too few steps."""

from collections.abc import Iterator

from abscot.common.hardware import GPUS, Gpu
from abscot.model.shape import GB, ModelShape
from abscot.pipeline import estimate
from abscot.pipeline.estimate import Sharding
from abscot.pipeline.sizing import USABLE, Sizing
from abscot.recipe.schema import Recipe


def advice(recipe: Recipe, shape: ModelShape, report: dict) -> Iterator[str]:
    own, world, kept = report["memory"][0], report["world"], report["data"]["kept"]
    if recipe.data.rows and kept < recipe.data.rows:
        yield (
            f"data.rows: {recipe.data.rows:,} are asked for, but only {kept:,} rows can be trained "
            "on; raise train.capacity_tokens, or cut CoTs by data.long_rows"
        )
    bin_tokens = max(phase["max_bin_tokens"] for phase in report["phases"])
    for gpu in GPUS:
        if not own["fits"][gpu.name]:
            remedy = _what_fits(Sizing(recipe, shape, world, bin_tokens), gpu)
            yield f"{gpu.name}: needs {own['bytes']['total'] / GB:.0f} GB per GPU; {remedy}"
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
    for name, sharding in remedies:
        if sizing.memory(sharding, checkpointing=True)["total"] <= limit:
            return f"--set {name} fits"
    needed = estimate.smallest_world_size(
        limit,
        lambda ranks: sizing.memory(offloaded, world_size=ranks, checkpointing=True),
    )
    if needed:
        return f"ZeRO-3 with offload fits on {needed} GPUs"
    adapters = sizing.adapter_parameters
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
