"""What a run will need, from shapes alone: memory of a GPU, FLOPs, hours, disk."""

from dataclasses import dataclass

import numpy as np

from abscot.common.hardware import Gpu
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
    trainable: int | None = None,
    optimizer: str = "adamw",
) -> dict[str, float]:
    """Peak bytes of one GPU by part. It trains bins of `bin_tokens` in bf16 and sums gradients in
    fp32.

    trainable: parameters that are trained (default: all). `host` is CPU memory per rank, not part
    of `total`.
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
    live = (
        BF16_BYTES * min(sharding.max_live_parameters, parameters) if sharding.stage >= 3 else 0.0
    )
    parts["gathered"] = live + buckets
    parts["activations"] = bin_tokens * activation_bytes_per_token(shape, checkpointing)
    head_gradient = (
        BF16_BYTES * shape.vocab * shape.hidden if trained >= shape.vocab * shape.hidden else 0.0
    )
    parts["loss head"] = head_gradient + chunk_tokens * shape.vocab * (BF16_BYTES + FP32_BYTES)
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
    work = {
        "gathered": live,
        "activations": bin_tokens * activation_bytes_per_token(shape, checkpointing),
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


def activation_bytes_per_token(shape: ModelShape, checkpointing: bool) -> float:
    """Saved by a layer: its norms' inputs and outputs, q k v through norm, RoPE and attention, the
    attention's output, and the four tensors of the gated MLP; the norms work in fp32. With
    checkpointing a layer keeps its input, and one layer at a time is computed again, with gradients
    as large as what it saved.
    """
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    saved = (
        BF16_BYTES * (5 * shape.hidden + 4 * query + 5 * key + 4 * shape.intermediate)
        + 2 * FP32_BYTES * shape.hidden
    )
    if not checkpointing:
        return shape.layers * saved
    return shape.layers * BF16_BYTES * shape.hidden + 2 * saved


def smallest_world_size(limit_bytes: float, memory_of, most: int = 4096) -> int | None:
    """The smallest power of two of GPUs on which memory_of(GPUs)["total"] is within limit_bytes."""
    world_size = 1
    while world_size <= most:
        if memory_of(world_size)["total"] <= limit_bytes:
            return world_size
        world_size *= 2
    return None


def trace_seconds(
    shape: ModelShape,
    gpu: Gpu,
    prompt_tokens: np.ndarray,
    trace_tokens: float,
    *,
    mfu: float,
    samples: int = 1,
    bandwidth_share: float = 0.6,
) -> float:
    """GPU seconds to prefill `prompt_tokens` (one per row) and to decode `trace_tokens` more per
    row, `samples` times from the same prefill.

    Prefill runs at `mfu`. Decoding reads, each step, all weights once and the KV cache of as many
    rows as fit beside the weights in 0.9 of the memory (at most 256), at `bandwidth_share` of the
    bandwidth.
    """
    lengths = prompt_tokens.astype(float)
    prefill = _forward_flops(shape, prompt_tokens) / (mfu * gpu.flops)
    weights = BF16_BYTES * shape.parameters
    row_bytes = shape.kv_bytes_per_token * (lengths.mean() + trace_tokens)
    together = float(np.clip((0.9 * gpu.memory_gb * GB - weights) / row_bytes, 1, 256))
    step_s = (weights + together * row_bytes) / (bandwidth_share * gpu.bandwidth)
    return prefill + samples * len(lengths) * trace_tokens * step_s / together


def states_seconds(
    shape: ModelShape, gpu: Gpu, tokens: np.ndarray, layers: int, *, mfu: float
) -> float:
    """GPU seconds of a forward of causal texts (`tokens`: one per row) through the first `layers`
    layers, without the head.
    """
    return _forward_flops(shape, tokens) * layers / shape.layers / (mfu * gpu.flops)


def scoring_seconds(shape: ModelShape, gpu: Gpu, tokens: np.ndarray, *, mfu: float) -> float:
    """GPU seconds of the log-probabilities of all tokens of texts (`tokens`: one per row)."""
    head = 2 * shape.hidden * shape.vocab * float(tokens.sum())
    return (_forward_flops(shape, tokens) + head) / (mfu * gpu.flops)


def _forward_flops(shape: ModelShape, tokens: np.ndarray) -> float:
    lengths = tokens.astype(float)
    return shape.forward_flops(lengths.sum(), (lengths * (lengths + 1) / 2).sum())


def disk_bytes(
    shape: ModelShape,
    *,
    row_tokens: float,
    trace_tokens: float,
    models: int,
    checkpoints: int,
    saved_bytes: float,
) -> dict[str, float]:
    """Shards, traces, checkpoints (one more exists while it is written) and exported models, in
    bytes. saved_bytes: of one checkpoint; what is not trained is not in it.
    """
    return {
        "shards": FP32_BYTES * row_tokens * 1.02,
        "traces": FP32_BYTES * trace_tokens,
        "checkpoints": (checkpoints + 1) * saved_bytes,
        "models": BF16_BYTES * shape.parameters * models,
    }


def dolci_like_lengths(rows: int, generator: np.random.Generator) -> np.ndarray:
    """Tokens of whole documents with the quantiles of Dolci-Think-SFT-7B in Qwen3 tokens, int64
    [rows].
    """
    at, tokens = [0, 0.1, 0.25, 0.5, 0.9, 1], [200, 1700, 8400, 20_000, 28_000, 32_700]
    return np.interp(generator.random(rows), at, tokens).astype(np.int64)
