"""peft adapters: made for training, merged for the export."""

from pathlib import Path

import torch

from abscot.common.draws import keyed_seed
from abscot.method.vocab import AbstractVocab, load_tokenizer
from abscot.recipe.schema import Recipe

# Parts of a parameter's name that peft made.
ADAPTER_PARTS = ("lora_A.", "lora_B.", "trainable_tokens_", "original_module.")


def plain_name(name: str) -> str:
    """A tensor's name in the plain model: peft's wrappers taken out of the path."""
    for wrapper in (".token_adapter", ".base_layer", ".modules_to_save.default"):
        name = name.replace(wrapper, "")
    return name


def adapter_parameters(wrapper) -> list:
    """The trained parameters that change the weight inside peft's `wrapper`."""
    if wrapper is None:
        return []
    if hasattr(wrapper, "lora_A"):
        return [wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight]
    return [wrapper.trainable_tokens_delta["default"]]


def merged_weight(parameter, wrapper) -> torch.Tensor:
    """The weight with its adapter: W + scale * B A (in fp32), or W with the trained rows put in."""
    tensor = parameter.detach().cpu().clone().contiguous()
    adapter = [p.detach().cpu() for p in adapter_parameters(wrapper)]
    if len(adapter) == 2:
        update = adapter[1].float() @ adapter[0].float() * wrapper.scaling["default"]
        tensor = (tensor.float() + update).to(tensor.dtype)
    elif adapter:
        tensor[wrapper.token_indices["default"]] = adapter[0].to(tensor.dtype)
    return tensor


def with_lora(lm, recipe: Recipe, directory: Path, name: str):
    """peft adapters. `new_rows` trains only the abstract rows of the (tied) table; `full` the whole
    table. name: of the training: their random start is keyed by it and the recipe's seed, and so
    the same on all ranks, in every run, whatever was drawn before.
    """
    import peft

    lora = recipe.lora
    tokenizer = load_tokenizer(directory, recipe.model.trust_remote_code)
    abstract = AbstractVocab.of(tokenizer, recipe.codebook_size)
    tied = lm.config.tie_word_embeddings
    if lora.embeddings == "new_rows":
        rows = abstract.ids
        tables = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
        embeddings = {"trainable_token_indices": {name: rows for name in tables}}
    else:
        embeddings = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": tied}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        base_model_name_or_path=str(directory),
        **embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(recipe.seed, name, "lora"))
        # fp32 adapters on a bf16 model raise under ZeRO-3 (DeepSpeed#8072).
        return peft.get_peft_model(lm, config, autocast_adapter_dtype=False)
