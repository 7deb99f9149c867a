"""New tokens live in rows that exist, and the table stays tied."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from abscot.method.vocab import extend_tokenizer
from abscot.model.extend import extend_embeddings
from abscot.recipe.schema import ModelConfig
from kit.letters import tokenizer_of


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
    assert extend_embeddings(model, abstract, ModelConfig(), seed=0) == after
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is table) == tied and model.config.vocab_size == after
    assert torch.equal(table[:51], old)
    for matrix in (table, head):
        new = matrix[list(abstract.allowed_ids)].float()
        spread = (new - matrix[:51].float().mean(0)).std()
        assert 5e-4 < spread < 3e-3 and len(new.unique(dim=0)) == 65
