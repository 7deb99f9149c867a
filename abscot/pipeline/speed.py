"""How long the work of a model takes on a kind of GPU: matrix products and attention at the rate
that each reaches there, all else at the rate at which memory moves, and what compute does not hide
of the communication. Kernel launches, the optimizer's step and a slow disk are left out.

Bytes outside matrix products are counted for each element of a layer's tensors, as torch's and
Liger's kernels read and write them in bf16.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from abscot.common.hardware import FLASH_ATTENTION_2, FLASH_ATTENTION_3, Gpu
from abscot.model import kernels
from abscot.model.shape import BF16_BYTES, FP32_BYTES, GB, ModelShape
from abscot.pipeline.estimate import Sharding
from abscot.recipe.schema import Recipe
from abscot.recipe.schema_train import LoraConfig

BACKWARD_PRODUCTS = 2.5  # matrix products of attention's backward over those of its forward
# Share of a micro-batch's communication that its compute can hide (assumed): NCCL's kernels take
# processors too, and the first gather of a pass has nothing to hide behind.
OVERLAP = 0.8
NODE_GPUS = 8


class Load(NamedTuple):
    """Packed documents. calls: attention calls of a layer, above 1 where segments are hidden."""

    tokens: float
    pairs: float  # (query, key) pairs that attend
    supervised: float = 0
    calls: int = 1


@dataclass(frozen=True)
class Levers:
    """What makes training faster and can be off; attention's outputs count as kept where nothing is
    recomputed.
    """

    flash_attention_3: bool
    liger: bool
    keep_attention: bool

    @classmethod
    def of(cls, recipe: Recipe) -> "Levers":
        """As in this environment, for GPUs that need not be here."""
        here, model = kernels.active(None), recipe.model
        is_varlen = model.attention in ("auto", "varlen")
        keeps = model.keep_attention or not model.gradient_checkpointing
        return cls(here.flash_attention_3 and is_varlen, here.liger, keeps)


class Moved(NamedTuple):
    """Bytes read and written per element."""

    norm: tuple[int, int]  # RMSNorm: forward, backward
    rope: tuple[int, int]
    gate: tuple[int, int]  # SwiGLU
    loss: int  # per logit, both ways


TORCH = Moved(norm=(36, 84), rope=(20, 32), gate=(10, 18), loss=44)
LIGER = Moved(norm=(4, 6), rope=(4, 4), gate=(6, 10), loss=6)
NORM_WEIGHT = 8  # the gradient of torch's norm weights, where they are trained
SUMS = (12, 30)  # residual sums, and gradients of what several products read
LAID_OUT = (4, 12)  # attention's gradients, copied to rows: of queries, of keys and values
QUERY_ROWS, KEY_ROWS = (10, 10), (8, 13)  # where a layer has several calls, each takes its rows
ADAPTER_IN, ADAPTER_OUT = (2, 10), (12, 8)  # LoRA's thin products, scale and sums


@dataclass(frozen=True)
class Speed:
    """lora: None where all is trained. trained: parameters. mfu: of all compute, in place of this
    model of it; None: as computed here.
    """

    shape: ModelShape
    gpu: Gpu
    levers: Levers
    checkpointing: bool
    sharding: Sharding
    world_size: int
    trained: int
    lora: LoraConfig | None = None
    mfu: float | None = None

    def of_vllm(self) -> "Speed":
        """vLLM brings its own kernels."""
        return dataclasses.replace(self, levers=Levers(True, True, True), lora=None)

    def training_flops(self, load: Load) -> float:
        """What MFU counts, as the train log does."""
        frozen = self.lora is not None
        return self.shape.training_flops(load.tokens, load.pairs, load.supervised, frozen)

    def training_s(self, load: Load) -> dict[str, float]:
        """Seconds of one GPU for forward and backward, by part."""
        if self.mfu:
            return {"compute": self.training_flops(load) / (self.mfu * self.gpu.flops)}
        reached, passes = self.gpu.reached, 2 if self.checkpointing else 1
        linear, attention, head = self._forward_flops(load)
        gradients = 1 if self.lora else 2  # of inputs, and of weights
        attention_passes = 1 if self.levers.keep_attention else passes
        forward, backward = self._attention_rates()
        moved_forward, moved_backward = self.moved_bytes(load)
        return {
            "matrix products": (linear * (passes + gradients) + head * (1 + gradients))
            / reached.matmul,
            "attention": attention * attention_passes / forward
            + attention * BACKWARD_PRODUCTS / backward,
            "memory": (passes * moved_forward + moved_backward + self._loss_bytes(load))
            / reached.copy,
        }

    def forward_s(self, load: Load, layers: int | None = None) -> float:
        """Seconds of one GPU for a forward, through the first `layers` layers alone; logits at
        supervised positions.
        """
        share = 1.0 if layers is None else layers / self.shape.layers
        linear, attention, head = self._forward_flops(load)
        if self.mfu:
            return (share * (linear + attention) + head) / (self.mfu * self.gpu.flops)
        products_s = (share * linear + head) / self.gpu.reached.matmul
        attention_s = share * attention / self._attention_rates()[0]
        return products_s + attention_s + share * self.moved_bytes(load)[0] / self.gpu.reached.copy

    def _forward_flops(self, load: Load) -> tuple[float, float, float]:
        """Of the layers' linear layers, of attention, of the head."""
        linear = self.shape.forward_flops(load.tokens, 0)
        attention = self.shape.forward_flops(0, load.pairs)
        return linear, attention, 2 * self.shape.hidden * self.shape.vocab * load.supervised

    def _attention_rates(self) -> tuple[float, float]:
        rates = self.gpu.reached.attention
        third = self.levers.flash_attention_3 and FLASH_ATTENTION_3 in rates
        return rates[FLASH_ATTENTION_3 if third else FLASH_ATTENTION_2]

    def moved_bytes(self, load: Load) -> tuple[float, float]:
        """Bytes of a forward and of a backward through all layers, outside matrix products and
        attention's kernels. The one norm behind the layers, and the embeddings, are left out.
        """
        shape, per_token = self.shape, []
        query, key = shape.query_width, shape.key_width
        moved = LIGER if self.levers.liger else TORCH
        adapted = shape.adapted_widths(self.lora) if self.lora else (0, 0)
        weights = 0 if self.lora or self.levers.liger else NORM_WEIGHT
        for way in (0, 1):
            norm = moved.norm[way] + way * weights
            per_token.append(
                norm * (2 * shape.hidden + query + key)
                + moved.rope[way] * (query + key)
                + moved.gate[way] * shape.intermediate
                + SUMS[way] * shape.hidden
                + way * (LAID_OUT[0] * query + LAID_OUT[1] * key)
                + (load.calls > 1) * (QUERY_ROWS[way] * query + KEY_ROWS[way] * key)
                + ADAPTER_IN[way] * adapted[0]
                + ADAPTER_OUT[way] * adapted[1]
            )
        return tuple(shape.layers * load.tokens * each for each in per_token)

    def _loss_bytes(self, load: Load) -> float:
        """The loss makes its gradient on the way, a chunk of logits at a time."""
        moved = LIGER if self.levers.liger else TORCH
        return moved.loss * self.shape.vocab * load.supervised

    def communication_s(self, micro_steps: float, compute_s: float) -> float:
        """Seconds of an optimizer step of `micro_steps` micro-batches that no compute hides;
        compute_s: of one of them.

        ZeRO-3 gathers all weights for the forward and again for the backward of each micro-batch,
        and -2 and -3 reduce its gradients (fp32); 0 and 1 add them up over all ranks once a step,
        and all but 3 gather the weights that were trained once a step.
        """
        if self.world_size == 1 or self.mfu:
            return 0.0
        reached, stage = self.gpu.reached, self.sharding.stage
        link = reached.node if self.world_size <= NODE_GPUS else reached.network
        to_link = (self.world_size - 1) / self.world_size / link
        weights_s = BF16_BYTES * to_link * self.shape.parameters
        trained_s = BF16_BYTES * to_link * self.trained
        gradients_s = FP32_BYTES * to_link * self.trained
        beside = (stage >= 2) * gradients_s + (stage == 3) * 2 * weights_s
        hidden = min(OVERLAP * beside, compute_s) if self.sharding.overlap else 0.0
        # An all-reduce takes twice a reduce-scatter.
        alone = (stage < 2) * 2 * gradients_s + (stage in (1, 2)) * trained_s
        return micro_steps * (beside - hidden) + alone

    def trace_s(
        self, prompt_tokens: np.ndarray, trace_tokens: float, samples: int = 1, share: float = 0.6
    ) -> float:
        """GPU seconds of vLLM to prefill `prompt_tokens` (one per row) and to decode `trace_tokens`
        more per row, `samples` times from the same prefill.

        Decoding reads, each step, all weights once and the KV cache of as many rows as fit beside
        the weights in 0.9 of the memory (at most 256), at `share` of the bandwidth.
        """
        shape, gpu = self.shape, self.gpu
        weights = BF16_BYTES * shape.parameters
        row_bytes = shape.kv_bytes_per_token * (prompt_tokens.mean() + trace_tokens)
        together = float(np.clip((0.9 * gpu.memory_gb * GB - weights) / row_bytes, 1, 256))
        step_s = (weights + together * row_bytes) / (share * gpu.bandwidth)
        decode_s = samples * len(prompt_tokens) * trace_tokens * step_s / together
        return self.forward_s(causal(prompt_tokens)) + decode_s


def causal(tokens: np.ndarray, scored: bool = False) -> Load:
    """Causal texts (`tokens`: one per row); scored: with logits at all positions."""
    lengths = tokens.astype(float)
    total = float(lengths.sum())
    return Load(total, float((lengths * (lengths + 1) / 2).sum()), total if scored else 0)
