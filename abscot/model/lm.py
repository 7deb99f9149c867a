"""The model: the extended base, loading for training (full or LoRA), and the masked forward that
ends in the loss.
"""

import types
from pathlib import Path

import torch
import transformers

from abscot.common import hardware
from abscot.common.log import log
from abscot.model import attention, kernels
from abscot.model.cpu_linear import upcast_linears
from abscot.model.lora import with_lora
from abscot.model.loss import right_tokens, supervised_loss
from abscot.model.recompute import checkpoint_layers
from abscot.recipe.schema import Recipe

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class SupervisedLM(torch.nn.Module):
    """A causal LM whose forward returns summed losses: logits exist only at supervised positions,
    chunk by chunk.

    The loss runs as the LM head's own forward, so that under ZeRO-3 the head's weight is gathered
    by the hooks of the module that uses it (read outside, it has numel 0: trl#6372), tied or not.
    """

    def __init__(self, lm, backend: str, chunk_tokens: int):
        super().__init__()
        self.lm, self.backend = lm, backend
        bare = unwrapped(lm)
        # A tuple: they are registered once, inside lm.
        self.parts = (bare.model, bare.get_output_embeddings())
        self.parts[1].forward = types.MethodType(_loss_forward(chunk_tokens), self.parts[1])

    def forward(self, input_ids, position_ids, labels, segment_id, layout, greedy=False):
        """input_ids, position_ids, labels: int64 [1, T]; segment_id: int8 [1, T]. Returns fp32
        scalars (total, z, y); where `greedy`, bool [1, T]: the labels that greedy decoding writes.
        """
        decoder, head = self.parts
        hidden = attention.hidden_states(
            decoder, layout, input_ids=input_ids, position_ids=position_ids
        )
        return head(hidden, labels, segment_id, greedy)


def _loss_forward(chunk_tokens: int):
    def forward(head, hidden, labels, segment_id, greedy=False):
        if greedy:
            return right_tokens(hidden, head.weight, labels, chunk_tokens)
        sums = supervised_loss(hidden, head.weight, labels, segment_id, chunk_tokens=chunk_tokens)
        return sums.total, sums.z, sums.y

    return forward


def unwrapped(lm):
    """The transformers model inside peft's wrappers, if there are any."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def load_for_training(
    directory: Path, recipe: Recipe, device: torch.device, name: str
) -> SupervisedLM:
    """The model at `directory`, ready for `deepspeed.initialize`: backend, checkpointing and LoRA
    as in the recipe. name: of the training, which keys the adapters' random start.
    """
    attention.register()
    backend = attention.choose(recipe.model.attention, device, DTYPES[recipe.model.dtype])
    lm = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=DTYPES[recipe.model.dtype],
        attn_implementation=backend,
        use_safetensors=True,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    kernels.fuse(lm, device)
    if recipe.lora:
        lm = with_lora(lm, recipe, directory, name)
    if recipe.model.gradient_checkpointing:
        checkpoint_layers(lm, recipe.model.keep_attention)
    if device.type == "cpu" and recipe.model.dtype == "bf16" and not hardware.cpu_has_bf16():
        log(
            "this CPU has no bf16 instructions: weights stay bf16, their matrix products run in "
            "fp32"
        )
        upcast_linears(lm)
    lm.train()
    return SupervisedLM(lm, backend, recipe.model.loss_chunk_tokens)


def restore_rotary(module: torch.nn.Module) -> None:
    """RoPE frequencies in fp32 again: sharded loading makes every tensor in bf16, which turns far
    positions to noise.
    """
    for rotary in module.modules():
        if hasattr(rotary, "original_inv_freq"):
            fresh = type(rotary)(rotary.config).to(rotary.inv_freq.device)
            rotary.inv_freq, rotary.original_inv_freq = fresh.inv_freq, fresh.original_inv_freq


def parameter_counts(module: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters, tied ones once; right under ZeRO-3 too, where local shapes are
    empty.
    """
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in module.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)
