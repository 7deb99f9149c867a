"""A small Qwen3, and the shipped recipe of a large one."""

import torch
import transformers

SMALL = dict(
    hidden_size=64,
    intermediate_size=160,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=128,
)


def real_model(layers: int, **changes):
    config = transformers.Qwen3Config(num_hidden_layers=layers, **{**SMALL, **changes})
    return transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
