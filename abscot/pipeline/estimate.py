"""What a run will need, from shapes alone: memory of a rank, disk."""

from dataclasses import dataclass

import numpy as np

from abscot.model.shape import BF16_BYTES, FP32_BYTES, GB, ModelShape
from abscot.training.optimizer import OPTIMIZERS

CPU_RUNTIME_BYTES = 0.8 * GB  # Python with torch, transformers and DeepSpeed
RUNTIME_BYTES = 3 * GB  # CUDA context, NCCL and kernel workspaces, allocator waste


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed spreads a model: ZeRO stage, where the optimizer lives, what is trained."""

    stage: int
    offload_optimizer: bool = False
    offload_parameters: bool = False
    max_live_parameters: float = 1e9
    bucket: float = 5e7  # elements of a reduce bucket
    overlap: bool = True  # communication beside compute

    @classmethod
    def of_config(cls, config: dict) -> "Sharding":
        zero = config.get("zero_optimization", {})
        devices = [
            zero.get(f"offload_{what}", {}).get("device", "none") for what in ("optimizer", "param")
        ]
        return cls(
            zero.get("stage", 0),
            devices[0] != "none",
            devices[1] != "none",
            zero.get("stage3_max_live_parameters", 1e9),
            zero.get("reduce_bucket_size", 5e8),
            zero.get("overlap_comm", zero.get("stage", 0) == 3),
        )

    @property
    def name(self) -> str:
        offloaded = [
            n
            for n, on in (
                ("optimizer", self.offload_optimizer),
                ("parameters", self.offload_parameters),
            )
            if on
        ]
        return f"ZeRO-{self.stage}" + (
            f" + {' and '.join(offloaded)} offloaded" if offloaded else ""
        )


def memory_bytes(
    shape: ModelShape,
    sharding: Sharding,
    world_size: int,
    bin_tokens: int,
    *,
    checkpointing: bool,
    chunk_tokens: int,
    keep_attention: bool = False,
    trainable: int | None = None,
    optimizer: str = "adamw",
) -> dict[str, float]:
    """Peak bytes of one GPU by part. It trains bins of `bin_tokens` in bf16 and sums gradients in
    fp32. Without Liger's kernels, which save less.

    keep_attention: beside the inputs of checkpointed layers. trainable: parameters that are trained
    (default: all). `host` is CPU memory per rank, not part of `total`.
    """
    parameters, trained = shape.parameters, shape.parameters if trainable is None else trainable
    parts: dict[str, float] = dict.fromkeys(
        ("parameters", "gradients", "optimizer", "gathered", "host"), 0.0
    )
    parts["parameters"] = BF16_BYTES * parameters / (world_size if sharding.stage >= 3 else 1)
    parts["gradients"] = FP32_BYTES * trained / (world_size if sharding.stage >= 2 else 1)
    parts["optimizer"] = (
        OPTIMIZERS[optimizer].bytes_per_parameter
        * trained
        / (world_size if sharding.stage >= 1 else 1)
    )
    if sharding.offload_optimizer:
        parts["host"] = parts["optimizer"] + FP32_BYTES * trained / world_size
        parts["optimizer"] = 0.0
        parts["gradients"] = BF16_BYTES * trained / world_size
    if sharding.offload_parameters:
        parts["host"] += parts["parameters"]
        parts["parameters"] = 0.0
    buckets = 2 * FP32_BYTES * min(sharding.bucket, trained)
    # What is gathered ahead (stage3_prefetch_bucket_size) is among it.
    live = (
        BF16_BYTES * min(sharding.max_live_parameters, parameters) if sharding.stage >= 3 else 0.0
    )
    parts["gathered"] = live + buckets
    # The loss works before the layers' backward: a chunk of logits in bf16 and fp32, beside the
    # table's gradient in fp32, which in bf16 then waits for the end of the backward.
    table = shape.vocab * shape.hidden if trained >= shape.vocab * shape.hidden else 0
    logits = chunk_tokens * shape.vocab * (BF16_BYTES + FP32_BYTES)
    kept = bin_tokens * kept_bytes_per_token(shape, checkpointing, keep_attention)
    layer = bin_tokens * working_bytes_per_token(shape, checkpointing)
    parts["activations"] = kept + max(layer, FP32_BYTES * table + logits)
    parts["loss head"] = BF16_BYTES * table
    parts["runtime"] = RUNTIME_BYTES
    parts["total"] = sum(size for name, size in parts.items() if name != "host")
    return parts


def cpu_memory_bytes(
    shape: ModelShape,
    sharding: Sharding,
    world_size: int,
    bin_tokens: int,
    *,
    checkpointing: bool,
    chunk_tokens: int,
    keep_attention: bool = False,
    trainable: int | None = None,
    optimizer: str = "adamw",
    bf16_in_hardware: bool = False,
) -> dict[str, float]:
    """Peak resident bytes of one rank that trains on a CPU in bf16, by part; `total` is that of the
    most expensive moment.

    The loss head is at work, beside activations and gathered weights; or the optimizer, with its
    temporaries: the whole gradient once more, and torch's AdamW two tensors as large. With the
    optimizer offloaded to CPUAdam there are none, but a second copy of the gradients stays. With
    adapters, which are made on the whole model, there is a third moment: the model's files are
    mapped beside this rank's part. Without bf16 instructions the head, and one linear layer at a
    time, work in fp32 copies.
    """
    parameters, trained = shape.parameters, shape.parameters if trainable is None else trainable
    kind, stage, offloaded = OPTIMIZERS[optimizer], sharding.stage, sharding.offload_optimizer
    share = trained / (world_size if stage >= 1 else 1)  # of the optimizer, this rank's
    gradients = FP32_BYTES * trained / (world_size if stage >= 2 else 1)
    parts = {
        "parameters": BF16_BYTES * parameters / (world_size if stage >= 3 else 1),
        "gradients": gradients * (2 if offloaded else 1),
        "optimizer": kind.bytes_per_parameter * share,
        "buckets": FP32_BYTES * min(sharding.bucket, trained),
        "runtime": CPU_RUNTIME_BYTES,
    }
    live = BF16_BYTES * min(sharding.max_live_parameters, parameters) if stage >= 3 else 0.0
    activations = kept_bytes_per_token(shape, checkpointing, keep_attention)
    activations += working_bytes_per_token(shape, checkpointing)
    work = {
        "gathered": live,
        "activations": bin_tokens * activations,
        "loss head": _cpu_head_bytes(shape, chunk_tokens, trained, bf16_in_hardware),
    }
    step = 0.0 if offloaded else kind.step_copies * FP32_BYTES * share
    load = BF16_BYTES * parameters + parts["parameters"] + CPU_RUNTIME_BYTES
    load *= trained < parameters
    total = max(sum(parts.values()) + max(sum(work.values()), step), load)
    return {**parts, **work, "optimizer step": step, "loading": load, "total": total}


def _cpu_head_bytes(
    shape: ModelShape, chunk_tokens: int, trained: int, bf16_in_hardware: bool
) -> float:
    """A chunk of logits, and the table in the dtype that is computed in, with its gradient."""
    table = shape.vocab * shape.hidden
    compute = BF16_BYTES if bf16_in_hardware else FP32_BYTES
    logits = chunk_tokens * shape.vocab * (FP32_BYTES + (BF16_BYTES if bf16_in_hardware else 0))
    copies = (not bf16_in_hardware) + (trained >= table)
    return logits + copies * compute * table


def saved_bytes_per_token(shape: ModelShape) -> int:
    """Saved by a layer: its norms' inputs and outputs, q k v through norm, RoPE and attention, the
    attention's output, and the four tensors of the gated MLP; the norms work in fp32.
    """
    width = 5 * shape.hidden + 4 * shape.query_width + 5 * shape.key_width + 4 * shape.intermediate
    return BF16_BYTES * width + 2 * FP32_BYTES * shape.hidden


def kept_bytes_per_token(shape: ModelShape, checkpointing: bool, keep_attention: bool) -> int:
    """Kept by all layers between forward and backward; with checkpointing their inputs, and
    attention's outputs with their log-sum-exps in fp32.
    """
    if not checkpointing:
        return shape.layers * (saved_bytes_per_token(shape) + _row_bytes_per_token(shape))
    attention = BF16_BYTES * shape.query_width + FP32_BYTES * shape.heads
    return shape.layers * (BF16_BYTES * shape.hidden + keep_attention * attention)


def working_bytes_per_token(shape: ModelShape, checkpointing: bool) -> int:
    """Of the layer whose backward runs: the gradients inside its MLP, and what it saved where that
    was computed again.
    """
    gradients = 2 * BF16_BYTES * (shape.intermediate + shape.hidden)
    saved = saved_bytes_per_token(shape) + _row_bytes_per_token(shape)
    return gradients + checkpointing * saved


def _row_bytes_per_token(shape: ModelShape) -> int:
    """Saved too where a layer has several attention calls: the q, k and v that each took."""
    return BF16_BYTES * (shape.query_width + 2 * shape.key_width)


def smallest_world_size(limit_bytes: float, memory_of, most: int = 4096) -> int | None:
    """The smallest power of two of GPUs on which memory_of(GPUs)["total"] is within limit_bytes."""
    world_size = 1
    while world_size <= most:
        if memory_of(world_size)["total"] <= limit_bytes:
            return world_size
        world_size *= 2
    return None


def disk_bytes(
    shape: ModelShape,
    *,
    row_tokens: float,
    trace_tokens: float,
    models: int,
    checkpoints: int,
    saved_bytes: float,
) -> dict[str, float]:
    """Shards, traces, checkpoints and exported models, in bytes. saved_bytes: of one checkpoint;
    what is not trained is not in it. One more exists while it is written, and the last of the
    training before, until an engine has agreed with its model.
    """
    return {
        "shards": FP32_BYTES * row_tokens * 1.02,
        "traces": FP32_BYTES * trace_tokens,
        "checkpoints": (checkpoints + 2) * saved_bytes,
        "models": BF16_BYTES * shape.parameters * models,
    }


def dolci_like_lengths(rows: int, generator: np.random.Generator) -> np.ndarray:
    """Tokens of whole documents with the quantiles of Dolci-Think-SFT-7B in Qwen3 tokens, int64
    [rows].
    """
    at, tokens = [0, 0.1, 0.25, 0.5, 0.9, 1], [200, 1700, 8400, 20_000, 28_000, 32_700]
    return np.interp(generator.random(rows), at, tokens).astype(np.int64)
