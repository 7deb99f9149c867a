"""What goes along with an exported model."""

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers

from abscot.common import files
from abscot.method.phases import PHASES, baselines
from abscot.method.vocab import AbstractVocab, load_tokenizer
from abscot.model.chat_model import ChatModel, DecodingRules, opening_trace
from abscot.model.custom_generate import generate
from abscot.model.foreign import Source
from abscot.model.lora import with_lora
from abscot.recipe.schema_train import LoraConfig
from abscot.training.export import export
from abscot.training.train_phase import chat_model_of
from kit.tiny_run import (
    EXPORT_META as META,
)
from kit.tiny_run import (
    make_model,
    make_tiny_run,
    tiny_model,
    tiny_recipe,
    tiny_tokenizer,
    training_of,
)


@pytest.fixture
def base(tmp_path) -> Path:
    make_model(tmp_path / "base", tiny_tokenizer(), seed=0)
    return tmp_path / "base"


def chat_model(model: Path) -> ChatModel:
    tokenizer = load_tokenizer(model)
    rules = DecodingRules(
        begin_token_id=AbstractVocab.of(tokenizer).begin_id,
        end_token_id=1,
        codebook_token_ids=[2],
        newline_token_ids=[3],
        m_min=1,
        m_max=2,
        trace_temperature=0.5,
    )
    return ChatModel(tokenizer, rules)


def test_a_codebook_goes_along_and_no_loader_minds(base, tmp_path):
    with files.publish(tmp_path / "codebook") as temp:
        for name in ("codebook.json", "codebook.safetensors"):
            (temp / name).write_bytes(b"not looked at")
    target = tmp_path / "round1"
    export(tiny_model(1), base, target, None, META, tmp_path / "codebook")
    listed = files.Done.of_directory(target).files
    assert {"codebook/codebook.json", "codebook/codebook.safetensors"} <= listed.keys()
    assert files.unlisted(target) == [] and not (target / "codebook" / files.DONE).exists()
    files.refuse_unlisted(target)
    transformers.AutoModelForCausalLM.from_pretrained(target, use_safetensors=True)
    export(tiny_model(1), target, tmp_path / "round2", None, META)
    assert not (tmp_path / "round2" / "codebook").exists()


def test_template_and_rules_go_along_sealed_round_after_round(base, tmp_path):
    plain = load_tokenizer(base).chat_template
    for source, name in ((base, "round1"), (tmp_path / "round1", "round2")):
        target = tmp_path / name
        chat = chat_model(source)
        export(tiny_model(1), source, target, None, META, chat=chat)
        assert load_tokenizer(target).chat_template == opening_trace(plain)
        assert DecodingRules.read(target / DecodingRules.FILE) == chat.rules
        assert "custom_generate/generate.py" in files.Done.of_directory(target).files
        files.refuse_unlisted(target)
        assert files.unlisted(target) == [] and files.verify(target) > 0
    assert load_tokenizer(base).chat_template == plain
    assert "abstract" not in json.loads((base / DecodingRules.FILE).read_text())


@pytest.mark.parametrize("embeddings", ["new_rows", "full"])
def test_an_adapter_brings_its_tokenizer_rules_and_code(base, tmp_path, embeddings):
    recipe = replace(tiny_recipe(tmp_path), lora=LoraConfig(r=2, embeddings=embeddings))
    lm = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lm, chat = with_lora(lm, recipe, base, "test"), chat_model(base)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    adapter = tmp_path / "adapter"
    export(lm, base, tmp_path / "round1", adapter, META, chat=chat)
    files.refuse_unlisted(adapter)
    assert files.unlisted(adapter) == [] and files.verify(adapter) > 0
    tokenizer = load_tokenizer(adapter)
    assert tokenizer.chat_template == load_tokenizer(tmp_path / "round1").chat_template
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 1?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "round1")
    expected = generate(model=merged, **prompt, max_new_tokens=5)
    config = transformers.GenerationConfig.from_pretrained(adapter)
    for loaded in (
        peft.AutoPeftModelForCausalLM.from_pretrained(adapter),
        transformers.AutoModelForCausalLM.from_pretrained(adapter),
    ):
        arguments = {"custom_generate": str(adapter), "trust_remote_code": True}
        out = loaded.generate(**prompt, **arguments, generation_config=config, max_new_tokens=5)
        assert torch.equal(out, expected)
    found = Source.of(str(adapter), "model.base", recipe.model, trained=True)
    assert found.tokenizer.chat_template == tokenizer.chat_template


def test_a_model_of_the_loop_carries_the_rules_of_evaluation_and_a_baseline_none(tmp_path):
    recipe, run, vocab = make_tiny_run(tmp_path)
    recipe = replace(recipe, eval=replace(recipe.eval, m_min=3, m_max=7, trace_temperature=0.25))
    loop = [training_of(recipe, run, 1, name) for name in PHASES if PHASES[name].iterated]
    rules = chat_model_of(loop[0]).rules
    assert rules == DecodingRules(
        begin_token_id=vocab.begin_id,
        end_token_id=vocab.end_id,
        codebook_token_ids=list(vocab.codebook_ids),
        newline_token_ids=load_tokenizer(run.base).encode("\n"),
        m_min=3,
        m_max=7,
        trace_temperature=0.25,
    )
    for phase in baselines():
        assert chat_model_of(training_of(recipe, run, 1, phase.name)) is None
