"""base/: the base model with the abstract vocabulary in its tokenizer and its table."""

import torch
import transformers

from abscot.common import files
from abscot.common.draws import keyed_seed, rng
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.method.vocab import TABLE_MULTIPLE, AbstractVocab, extend_tokenizer, load_tokenizer
from abscot.model.lm import DTYPES
from abscot.recipe.load import local_path
from abscot.recipe.run import Run
from abscot.recipe.schema import ModelConfig, Recipe


def base_source(recipe: Recipe, run: Run) -> str:
    """Where the base comes from: the world's model, a directory, or a hub id. UserError without the
    world it names.
    """
    if recipe.model.base == "world":
        if not files.is_done(run.world):
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
            torch.manual_seed(keyed_seed("random_init", recipe.seed))
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
    """Writes base/: tokenizer and table extended once, offline, before any rank shards
    the model.
    """
    source = base_source(recipe, run)
    lm, tokenizer = load_base(recipe, source)
    if tokenizer.chat_template is None:
        raise UserError(
            f"{source}: its tokenizer has no chat template; use an instruct model, e.g. "
            "Qwen/Qwen3-4B"
        )
    before = len(tokenizer)
    abstract = extend_tokenizer(tokenizer, recipe.codebook_size)
    rows = extend_embeddings(lm, abstract, recipe.model, recipe.seed)
    lm.generation_config = turn_ending(lm.generation_config, tokenizer)
    meta = {
        "base": recipe.model.base,
        "vocab_before": before,
        "vocab_after": len(tokenizer),
        "table_rows": rows,
        "tied": bool(lm.config.tie_word_embeddings),
        "parameters": sum(p.numel() for p in lm.parameters()),
    }
    with files.publish(run.base, meta) as temp:
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
    """The token that ends an assistant turn: <|im_end|> where the tokenizer has it, else
    its eos.
    """
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return (
        turn_end
        if turn_end is not None and turn_end != tokenizer.unk_token_id
        else tokenizer.eos_token_id
    )


def extend_embeddings(model, vocab: AbstractVocab, config: ModelConfig, seed: int) -> int:
    """Starts the new rows in the rows the table already has; grows it (to a multiple of 128) only
    where it must.

    `mean`: mean of the rows below the new ones plus N(0, std); `normal`: N(0, std); `zero`. Tied
    tables stay tied; an untied head gets the same treatment from its own rows. Returns the number
    of rows of the table.
    """
    import torch

    first, last = vocab.new_ids[0], vocab.new_ids[-1]
    rows = model.get_input_embeddings().weight.shape[0]
    if last >= rows:
        model.resize_token_embeddings(
            last + 1, pad_to_multiple_of=TABLE_MULTIPLE, mean_resizing=False
        )
    tables = [model.get_input_embeddings().weight]
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings().weight)
    noise = torch.from_numpy(
        rng("new_rows", seed).standard_normal((last + 1 - first, tables[0].shape[1]))
    )
    with torch.no_grad():
        for table in tables:
            fresh = (
                noise.float() * config.new_rows_std
                if config.new_rows != "zero"
                else torch.zeros(noise.shape)
            )
            if config.new_rows == "mean":
                fresh = fresh + table[:first].float().mean(0)
            table[first : last + 1] = fresh.to(table.dtype)
    return model.get_input_embeddings().weight.shape[0]
