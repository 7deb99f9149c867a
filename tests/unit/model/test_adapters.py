"""An adapter is merged into the base that it names, to the model that its author merged."""

import json

import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from abscot.method.vocab import AbstractVocab
from abscot.model.foreign import Source
from abscot.recipe.schema import ModelConfig
from kit.published import LORA, make_published
from kit.tiny_run import make_model, tiny_tokenizer

FP32 = ModelConfig(dtype="fp32")


def loaded(directory):
    return Source.of(str(directory), "model.base", FP32, trained=True).load(seed=0)


def gap(lm, other) -> float:
    ids = torch.arange(200, 320)[None]
    with torch.no_grad():
        return float((lm(ids).logits - other(ids).logits).abs().max())


def test_the_published_adapter_gives_the_published_model(tmp_path, capsys):
    """Whole tables, trained apart, with fewer rows than the tied table of its base."""
    final = make_published(tmp_path)
    lm = loaded(tmp_path / "adapters" / "pi1_phaseA")
    assert "trained the two tied tables apart: untied" in capsys.readouterr().out
    expected = load_file(final / "model.safetensors")
    found = lm.state_dict()
    assert found.keys() == expected.keys() and not lm.config.tie_word_embeddings
    assert max(float((found[n] - expected[n]).abs().max()) for n in expected) == 0.0
    lm.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_trained_token_rows_of_a_tied_table_are_merged_and_it_stays_tied(tmp_path):
    """As this project's own adapters are."""
    make_model(tmp_path / "base", tiny_tokenizer(), seed=0)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = AbstractVocab.of(AutoTokenizer.from_pretrained(tmp_path / "base")).ids
    rows = {"trainable_token_indices": {"embed_tokens": ids}}
    adapted = peft.get_peft_model(lm, peft.LoraConfig(task_type="CAUSAL_LM", **LORA, **rows))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = loaded(tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert gap(merged, adapted.eval()) < 1e-4 < 0.1 < gap(merged, plain)


def test_the_adapters_own_tokenizer_counts(tmp_path):
    """Its base has none of the abstract tokens."""
    make_published(tmp_path)
    adapter = tmp_path / "adapters" / "pi1_phaseA"
    source = Source.of(str(adapter), "model.base", FP32, trained=True)
    assert AbstractVocab.of(source.tokenizer).end_id == 262
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert source.directory == tmp_path / "base" and str(source.directory) == base
