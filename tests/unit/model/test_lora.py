"""Adapters: their random start."""

from dataclasses import replace

import pytest
import torch

from abscot.model.lora import with_lora
from abscot.recipe.schema_train import LoraConfig
from kit.tiny_run import make_model, tiny_model, tiny_recipe, tiny_tokenizer


@pytest.mark.parametrize("embeddings", ["new_rows", "full"])
def test_adapters_start_by_seed_and_training_whatever_was_drawn_before(tmp_path, embeddings):
    make_model(tmp_path / "base", tiny_tokenizer(), seed=0)
    plain = replace(tiny_recipe(tmp_path), lora=LoraConfig(r=2, embeddings=embeddings))

    def start(name="pi1_phaseA", seed=0, drawn_before=0):
        torch.manual_seed(drawn_before)
        lm = with_lora(tiny_model(0), replace(plain, seed=seed), tmp_path / "base", name)
        return {n: p.detach().clone() for n, p in lm.named_parameters() if p.requires_grad}

    first = start()
    again = start(drawn_before=5)
    assert first.keys() == again.keys() and all(torch.equal(first[n], again[n]) for n in first)
    drawn = {name for name in first if "lora_A" in name}
    for other in (start(name="pi1_phaseB"), start(seed=1)):
        assert {name for name in first if not torch.equal(first[name], other[name])} == drawn


def test_adapters_leave_the_draws_of_others_alone(tmp_path):
    make_model(tmp_path / "base", tiny_tokenizer(), seed=0)
    recipe, lm = replace(tiny_recipe(tmp_path), lora=LoraConfig(r=2)), tiny_model(0)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with_lora(lm, recipe, tmp_path / "base", "pi1_phaseA")
    assert torch.equal(torch.rand(3), expected)
