"""New tokens live in rows that exist, the table stays tied, and what was learnt stays."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from abscot.common import files
from abscot.method.vocab import (
    BEGIN,
    END,
    AbstractVocab,
    abstract_tokens,
    codebook_tokens,
    extend_tokenizer,
    missing_tokens,
)
from abscot.model.extend import check_base, extend_base, extend_embeddings
from abscot.recipe.run import Run
from abscot.recipe.schema import ModelConfig, Recipe, WorldConfig
from kit.letters import tokenizer_of
from kit.published import make_published
from kit.tiny_run import plain_tokenizer, tiny_model


def model_of(rows, tied):
    config = Qwen3Config(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=tied,
    )
    return Qwen3ForCausalLM(config).bfloat16()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows, after", [(256, 256), (128, 128), (100, 128)])
def test_new_tokens_live_in_existing_rows_and_the_table_stays_tied(rows, after, tied):
    torch.manual_seed(0)
    tokenizer, model = tokenizer_of(50), model_of(rows, tied)
    old = model.get_input_embeddings().weight[:51].clone()
    abstract = extend_tokenizer(tokenizer)
    assert extend_embeddings(model, abstract.ids, ModelConfig(), seed=0) == after
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is table) == tied and model.config.vocab_size == after
    assert torch.equal(table[:51], old)
    for matrix in (table, head):
        new = matrix[list(abstract.allowed_ids)].float()
        spread = (new - matrix[:51].float().mean(0)).std()
        assert 5e-4 < spread < 3e-3 and len(new.unique(dim=0)) == 65


def extended(root, base, codebook_size=64, dtype="fp32") -> Run:
    """The run root/.. whose base/ was made of `base`."""
    model = ModelConfig(base=str(base), dtype=dtype)
    recipe = Recipe(
        name="run",
        run_root=str(root),
        model=model,
        codebook_size=codebook_size,
        world=WorldConfig(),
    )
    run = Run.of(recipe)
    extend_base(recipe, run, check_base(recipe, run))
    return run


def made(directory, tokens, rows=384):
    """A model whose tokenizer has `tokens` at the end, every row of its table random."""
    tokenizer = plain_tokenizer()
    tokenizer.add_tokens(tokens, special_tokens=True)
    tiny_model(seed=5, vocab_size=rows).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


def largest_change(before: dict, run: Run) -> float:
    after = load_file(run.base / "model.safetensors")
    assert before.keys() == after.keys()
    return max(float((after[name] - before[name]).abs().max()) for name in before)


def test_new_extensions_have_the_published_order_of_ids(tmp_path):
    made(tmp_path / "plain", [])
    run = extended(tmp_path, tmp_path / "plain")
    tokenizer, last = AutoTokenizer.from_pretrained(run.base), len(plain_tokenizer())
    found = tokenizer.convert_tokens_to_ids([BEGIN, END, "<TOKEN_A>", "<TOKEN_BL>"])
    assert found == [last, last + 1, last + 2, last + 65]
    meta = files.read_done(run.base)
    assert (meta["tokens_found"], meta["tokens_added"]) == (0, 66)


def test_an_extended_base_keeps_every_weight_and_says_so(tmp_path, capsys):
    """Its own order of ids too; extended again and again, as a `final/` with DONE would be."""
    order = [*codebook_tokens(), END, BEGIN]
    before, base = made(tmp_path / "final", order), tmp_path / "final"
    for again in ("first", "second"):
        run = extended(tmp_path / again, base)
        assert largest_change(before, run) == 0.0
        assert "66 abstract tokens found, 0 added" in capsys.readouterr().out
        meta = files.read_done(run.base)
        assert (meta["tokens_found"], meta["tokens_added"]) == (66, 0)
        base = run.base
    vocab = AbstractVocab.of(AutoTokenizer.from_pretrained(base))
    last = len(plain_tokenizer())
    assert (vocab.codebook_ids[0], vocab.end_id, vocab.begin_id) == (last, last + 64, last + 65)


def test_a_shrunk_untied_table_of_begin_first_stays_so(tmp_path, capsys):
    final = make_published(tmp_path / "published")
    run = extended(tmp_path, final)
    assert largest_change(load_file(final / "model.safetensors"), run) == 0.0
    assert "untied table of 327 rows, kept as it is" in capsys.readouterr().out
    meta = files.read_done(run.base)
    assert (meta["table_rows"], meta["vocab_after"], meta["tied"]) == (327, 327, False)


def test_an_adapter_is_merged_into_base(tmp_path):
    final = make_published(tmp_path / "published")
    run = extended(tmp_path, tmp_path / "published" / "adapters" / "pi1_phaseA")
    assert largest_change(load_file(final / "model.safetensors"), run) == 0.0


def test_a_base_with_some_of_the_tokens_gets_the_others_alone(tmp_path, capsys):
    """In free rows, then in a table that has to grow for them."""
    some = [*codebook_tokens(32), END]
    for rows, after in ((384, 384), (294, 384)):
        before = made(tmp_path / str(rows), some, rows)["model.embed_tokens.weight"]
        run = extended(tmp_path / f"of{rows}", tmp_path / str(rows))
        assert "33 abstract tokens found, 33 added" in capsys.readouterr().out
        table = load_file(run.base / "model.safetensors")["model.embed_tokens.weight"]
        tokenizer, known = AutoTokenizer.from_pretrained(run.base), len(plain_tokenizer()) + 33
        assert not missing_tokens(tokenizer) and len(table) == after
        assert torch.equal(table[:known], before[:known])
        new = table[known : known + 33]
        assert tokenizer.convert_tokens_to_ids(BEGIN) == known and len(new.unique(dim=0)) == 33
        assert (new - before[:known].mean(0)).std() < 3e-3


def test_that_wider_weights_are_rounded_is_said(tmp_path, capsys):
    made(tmp_path / "fp32", [])
    extended(tmp_path, tmp_path / "fp32", dtype="bf16")
    assert "F32 weights rounded to bf16" in capsys.readouterr().out
    extended(tmp_path / "again", tmp_path / "run" / "base", dtype="bf16")
    assert "rounded" not in capsys.readouterr().out


def test_a_larger_codebook_stays_and_is_said(tmp_path, capsys):
    before = made(tmp_path / "large", abstract_tokens(80))
    run = extended(tmp_path, tmp_path / "large")
    assert largest_change(before, run) == 0.0
    out = capsys.readouterr().out
    assert "66 abstract tokens found, 0 added" in out and "of its 80 codebook tokens" in out
    assert len(AutoTokenizer.from_pretrained(run.base)) == len(plain_tokenizer()) + 82
