"""The abstract vocabulary: names, ids, embedding rows that keep the table tied, keyed
random draws.
"""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from abscot.common.draws import keyed_seed, rng
from abscot.common.errors import UserError
from abscot.method.vocab import AbstractVocab, codebook_tokens, extend_tokenizer
from abscot.model.extend import extend_embeddings
from abscot.recipe.schema import ModelConfig


def tokenizer_of(size):
    letters = {chr(0x4E00 + i): i for i in range(size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(letters, [])), eos_token="<|im_end|>"
    )


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


def test_the_64_names_of_the_paper():
    names = codebook_tokens(64)
    assert (names[0], names[25], names[26], names[63]) == (
        "<TOKEN_A>",
        "<TOKEN_Z>",
        "<TOKEN_AA>",
        "<TOKEN_BL>",
    )
    assert len(set(names)) == 64


def test_an_unextended_tokenizer_is_refused_by_name():
    with pytest.raises(UserError, match="<TOKEN_A>"):
        AbstractVocab.of(tokenizer_of(50))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows, after", [(256, 256), (128, 128), (100, 128)])
def test_new_tokens_live_in_existing_rows_and_the_table_stays_tied(rows, after, tied):
    torch.manual_seed(0)
    tokenizer, model = tokenizer_of(50), model_of(rows, tied)
    old = model.get_input_embeddings().weight[:51].clone()
    abstract = extend_tokenizer(tokenizer)
    assert extend_embeddings(model, abstract, ModelConfig(), seed=0) == after
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is table) == tied and model.config.vocab_size == after
    assert torch.equal(table[:51], old)
    for matrix in (table, head):
        new = matrix[list(abstract.allowed_ids)].float()
        spread = (new - matrix[:51].float().mean(0)).std()
        assert 5e-4 < spread < 3e-3 and len(new.unique(dim=0)) == 65


def test_draws_depend_on_their_key_alone():
    first = rng(0, 1, "A", "row-7").integers(0, 1 << 30, 4)
    assert np.array_equal(first, rng(0, 1, "A", "row-7").integers(0, 1 << 30, 4))
    assert not np.array_equal(first, rng(0, 1, "A", "row-8").integers(0, 1 << 30, 4))
    assert rng("ab", "c").random() != rng("a", "bc").random()
    assert 0 <= keyed_seed(0, 1) < 2**31
