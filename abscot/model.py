"""The model: the extended base, loading for training (full or LoRA), and the masked forward that
ends in the loss.
"""

import types
from pathlib import Path

import torch
import transformers

from abscot import attention, loss, paths, vocab
from abscot.config import ModelConfig, Recipe, UserError, local_path
from abscot.dist import log
from abscot.paths import Run

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
        self.parts = (
            bare.model,
            bare.get_output_embeddings(),
        )  # a tuple: registered once, inside lm
        self.parts[1].forward = types.MethodType(_loss_forward(chunk_tokens), self.parts[1])

    def forward(self, input_ids, position_ids, labels, segment_id, layout):
        """input_ids, position_ids, labels: int64 [1, T]; segment_id: int8 [1, T]. Returns fp32
        scalars (total, z, y).
        """
        decoder, head = self.parts
        hidden = decoder(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            abscot_layout=layout,
        ).last_hidden_state
        return head(hidden, labels, segment_id)


def _loss_forward(chunk_tokens: int):
    def forward(head, hidden, labels, segment_id):
        sums = loss.supervised_loss(
            hidden, head.weight, labels, segment_id, chunk_tokens=chunk_tokens
        )
        return sums.total, sums.z, sums.y

    return forward


def unwrapped(lm):
    """The transformers model inside peft's wrappers, if there are any."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def load_for_training(directory: Path, recipe: Recipe, device: torch.device) -> SupervisedLM:
    """The model at `directory`, ready for `deepspeed.initialize`: backend, checkpointing and LoRA
    as in the recipe.
    """
    attention.register()
    backend = attention.choose(recipe.model.attention, device)
    lm = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=DTYPES[recipe.model.dtype],
        attn_implementation=backend,
        trust_remote_code=False,
    )
    if recipe.lora:
        lm = with_lora(lm, recipe, directory)
    if recipe.model.gradient_checkpointing:
        # Reentrant: the only kind that works with PEFT under ZeRO-3 (trl#6356).
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        lm.enable_input_require_grads()
    if device.type == "cpu" and recipe.model.dtype == "bf16" and not attention.cpu_has_bf16():
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


def with_lora(lm, recipe: Recipe, directory: Path):
    """peft adapters. `new_rows` trains only the abstract rows of the (tied) table; `full` the whole
    table.
    """
    import peft

    lora = recipe.lora
    tokenizer = load_tokenizer(directory)
    abstract = vocab.AbstractVocab.of(tokenizer, recipe.codebook_size)
    tied = lm.config.tie_word_embeddings
    if lora.embeddings == "new_rows":
        rows = sorted([*abstract.codebook_ids, abstract.begin_id, abstract.end_id])
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
    # fp32 adapters on a bf16 model raise under ZeRO-3 (DeepSpeed#8072).
    return peft.get_peft_model(lm, config, autocast_adapter_dtype=False)


def upcast_linears(lm) -> None:
    """Linear layers that multiply in fp32 and hand on bf16: about 4x faster on CPUs without bf16
    instructions.
    """
    for module in lm.modules():
        if type(module) is torch.nn.Linear:
            module.forward = types.MethodType(_upcast_forward, module)


def _upcast_forward(linear, x):
    return _UpcastLinear.apply(x, linear.weight, linear.bias)


class _UpcastLinear(torch.autograd.Function):
    """y = x W^T + b with bf16 operands and fp32 arithmetic; no fp32 copy outlives the call."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        y = torch.nn.functional.linear(
            x.float(), weight.float(), bias.float() if ctx.has_bias else None
        )
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad32 = grad.float()
        flat = grad32.reshape(-1, grad.shape[-1])
        grad_x = (grad32 @ weight.float()).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_w = grad_b = None
        if ctx.needs_input_grad[1]:
            grad_w = (flat.t() @ x.float().reshape(-1, x.shape[-1])).to(weight.dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_b = flat.sum(0).to(weight.dtype)
        return grad_x, grad_w, grad_b


def load_tokenizer(directory, trust_remote_code: bool = False):
    return transformers.AutoTokenizer.from_pretrained(
        directory, trust_remote_code=trust_remote_code
    )


def base_source(recipe: Recipe, run: Run) -> str:
    """Where the base comes from: the world's model, a directory, or a hub id. UserError without the
    world it names.
    """
    if recipe.model.base == "world":
        if not paths.is_done(run.world):
            raise UserError(f"{run.world}: no world yet; make it with: python launch/world.py")
        return str(run.world / "model")
    return str(local_path(recipe.model.base) or recipe.model.base)


def load_base(recipe: Recipe, source: str):
    """The raw base on the CPU, and its tokenizer. UserError where either cannot be read."""
    config: ModelConfig = recipe.model
    try:
        tokenizer = load_tokenizer(source, config.trust_remote_code)
        if config.random_init:
            shape = transformers.AutoConfig.from_pretrained(
                source, trust_remote_code=config.trust_remote_code
            )
            torch.manual_seed(vocab.keyed_seed("random_init", recipe.seed))
            lm = transformers.AutoModelForCausalLM.from_config(shape, dtype=DTYPES[config.dtype])
        else:
            lm = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=DTYPES[config.dtype], trust_remote_code=config.trust_remote_code
            )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.base: {source}: not a loadable model: {str(error).splitlines()[0]}"
        ) from error
    return lm, tokenizer


def extend_base(recipe: Recipe, run: Run) -> None:
    """Writes base/: tokenizer and table extended once, offline, before any rank shards the model."""
    source = base_source(recipe, run)
    lm, tokenizer = load_base(recipe, source)
    if tokenizer.chat_template is None:
        raise UserError(
            f"{source}: its tokenizer has no chat template; use an instruct model, e.g. "
            "Qwen/Qwen3-4B"
        )
    before = len(tokenizer)
    abstract = vocab.extend_tokenizer(tokenizer, recipe.codebook_size)
    rows = vocab.extend_embeddings(lm, abstract, recipe.model, recipe.seed)
    lm.generation_config = turn_ending(lm.generation_config, tokenizer)
    meta = {
        "base": recipe.model.base,
        "vocab_before": before,
        "vocab_after": len(tokenizer),
        "table_rows": rows,
        "tied": bool(lm.config.tie_word_embeddings),
        "parameters": sum(p.numel() for p in lm.parameters()),
    }
    with paths.publish(run.base, meta) as temp:
        lm.save_pretrained(temp, max_shard_size="4GB")
        tokenizer.save_pretrained(temp)
    log(
        f"{run.base}: {before:,} -> {len(tokenizer):,} token ids, table of {rows:,} rows, "
        f"{'tied' if meta['tied'] else 'untied'}"
    )


def turn_ending(generation, tokenizer):
    """The generation config with the chat's end of turn as eos: a Base tokenizer ends at
    <|endoftext|> instead.
    """
    end = turn_end_id(tokenizer)
    known = (
        generation.eos_token_id
        if isinstance(generation.eos_token_id, list)
        else [generation.eos_token_id]
    )
    generation.eos_token_id = [end, *(i for i in known if i is not None and i != end)]
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    return generation


def turn_end_id(tokenizer) -> int:
    """The token that ends an assistant turn: <|im_end|> where the tokenizer has it, else its eos."""
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return (
        turn_end
        if turn_end is not None and turn_end != tokenizer.unk_token_id
        else tokenizer.eos_token_id
    )


def parameter_counts(module: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters, tied ones once; right under ZeRO-3 too, where local shapes are
    empty.
    """
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in module.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)
