"""base/: the base model with the abstract vocabulary in its tokenizer and its table."""

import torch

from abscot.common import files
from abscot.common.draws import rng
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.method.vocab import (
    TABLE_MULTIPLE,
    abstract_tokens,
    codebook_size_of,
    extend_tokenizer,
    missing_tokens,
)
from abscot.model.check import one_line
from abscot.model.foreign import Source
from abscot.model.weights import kinds
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
    return recipe.model.base


def check_base(recipe: Recipe, run: Run) -> Source:
    """The base, wholly checked. Nothing is written. Raises UserError."""
    return Source.of(base_source(recipe, run), "model.base", recipe.model, trained=True)


def extend_base(recipe: Recipe, run: Run, source: Source) -> None:
    """Writes base/: tokenizer and table extended once, offline, before any rank shards the model.

    What the base has learnt stays: only rows of tokens that are added here are initialised.
    """
    tokenizer, size = source.tokenizer, recipe.codebook_size
    lm = source.load(recipe.seed)
    before, rows_before = len(tokenizer), lm.get_input_embeddings().weight.shape[0]
    missing = missing_tokens(tokenizer, size)
    extend_tokenizer(tokenizer, size)
    rows = extend_embeddings(
        lm, tokenizer.convert_tokens_to_ids(missing), recipe.model, recipe.seed
    )
    with one_line(f"{source.where}: generation_config.json"):
        lm.generation_config = turn_ending(lm.generation_config, tokenizer)
        lm.generation_config.validate(strict=True)
    meta = {
        "base": recipe.model.base,
        "vocab_before": before,
        "vocab_after": len(tokenizer),
        "tokens_found": len(abstract_tokens(size)) - len(missing),
        "tokens_added": len(missing),
        "table_rows": rows,
        "tied": bool(lm.config.tie_word_embeddings),
        "parameters": sum(p.numel() for p in lm.parameters()),
    }
    with files.publish(run.base, meta) as temp:
        lm.save_pretrained(temp, max_shard_size="4GB")
        tokenizer.save_pretrained(temp)
    table = f"{'tied' if meta['tied'] else 'untied'} table of {rows:,} rows"
    change = "in rows that it had" if missing else "kept as it is"
    change = f"grown from {rows_before:,}" if rows != rows_before else change
    log(
        f"{run.base}: {meta['tokens_found']} abstract tokens found, {len(missing)} added; "
        f"{before:,} -> {len(tokenizer):,} token ids, {table}, {change}"
    )
    wider = set(kinds(source.weights, source.where).values()) & {"F64", "F32", "F16"}
    if recipe.model.dtype == "bf16" and wider:
        log(f"{run.base}: {' and '.join(sorted(wider))} weights rounded to bf16 (model.dtype)")
    if (found := codebook_size_of(tokenizer)) > size:
        log(f"{run.base}: of its {found} codebook tokens the first {size} are used (codebook_size)")


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


def extend_embeddings(model, added: list[int], config: ModelConfig, seed: int) -> int:
    """Starts the rows of the ids `added`, in the rows the table already has; grows it (to a
    multiple of 128) only where it must. No other row is touched.

    `mean`: mean of the rows below the first of them plus N(0, std); `normal`: N(0, std); `zero`.
    Tied tables stay tied; an untied head gets the same treatment from its own rows. Returns the
    number of rows of the table.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if not added:
        return rows
    ids = sorted(added)
    if ids[-1] >= rows:
        model.resize_token_embeddings(
            ids[-1] + 1, pad_to_multiple_of=TABLE_MULTIPLE, mean_resizing=False
        )
    tables = [model.get_input_embeddings().weight]
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings().weight)
    noise = torch.from_numpy(
        rng("new_rows", seed).standard_normal((len(ids), tables[0].shape[1]))
    ).float()
    with torch.no_grad():
        for table in tables:
            fresh = noise * (0 if config.new_rows == "zero" else config.new_rows_std)
            if config.new_rows == "mean":
                fresh = fresh + table[: ids[0]].float().mean(0)
            table[ids] = fresh.to(table.dtype)
    return model.get_input_embeddings().weight.shape[0]
