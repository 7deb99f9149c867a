"""The world's base: its tokenizer behaves as Qwen3's, and its weights are the seed's alone."""

import dataclasses
import re

import pytest
import torch

from abscot.common import files
from abscot.data.toy_base import (
    Muon,
    _reply_loss,
    _texts,
    base_documents,
    make_model,
    make_tokenizer,
    train_base,
)
from abscot.data.toy_world import make_rows, write
from abscot.method.vocab import AbstractVocab, extend_tokenizer
from abscot.recipe.schema import WorldConfig

SMALL = WorldConfig(
    rows=200,
    heldout=50,
    hidden_size=64,
    num_layers=1,
    base_steps=3,
    base_thinking_rows=4,
    base_direct_rows=4,
)


@pytest.fixture(scope="module")
def rows():
    return list(make_rows(SMALL, 0)[0])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world") / "world"
    write(directory, SMALL, 0, None)
    return directory


@pytest.fixture(scope="module")
def tokenizer(written):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(written / "model")


def test_muon_is_torchs_in_fp32():
    """The same steps as torch.optim.Muon, which iterates in bf16, for wide, tall and square."""
    draw = torch.Generator().manual_seed(0)
    ours = [
        torch.nn.Parameter(torch.randn(shape, generator=draw))
        for shape in [(32, 64), (96, 32), (32, 32), (32, 64)]
    ]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    optimizers = Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0)
    before = [matrix.detach().clone() for matrix in ours]
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=draw)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, start in zip(ours, theirs, before, strict=True):
        assert (mine - other).norm() < 0.02 * (mine - start).norm()
        assert mine.dtype == torch.float32


def test_tokenizer_splits_digits_and_keeps_every_byte(tokenizer):
    text = "Max has 117 pens; ça va, 数学 \\boxed{-20}\n\n\t<think>x</think>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not [t for t in map(tokenizer.decode, ids) if re.search(r"\d", t) and len(t) > 1]
    assert tokenizer.convert_tokens_to_ids("<think>") in ids


def test_template_is_qwen3s(tokenizer):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    asked = {
        thinking: tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        for thinking in (True, False)
    }
    open_turn = (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    assert asked == {True: open_turn, False: open_turn + "<think>\n\n</think>\n\n"}
    assert tokenizer.eos_token == "<|im_end|>"


def test_model_loads_tied_with_rows_to_spare(written, tokenizer):
    from transformers import AutoModelForCausalLM, GenerationConfig

    files.verify(written)
    model = AutoModelForCausalLM.from_pretrained(written / "model", dtype="auto")
    table = model.get_input_embeddings().weight
    assert type(model).__name__ == "Qwen3ForCausalLM" and table.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight is table
    assert table.shape[0] % 128 == 0
    assert max(extend_tokenizer(tokenizer).allowed_ids) < table.shape[0]
    assert AbstractVocab.of(tokenizer).begin_id < table.shape[0]
    eos = GenerationConfig.from_pretrained(written / "model").eos_token_id
    assert tokenizer.convert_ids_to_tokens(eos) == "<|im_end|>"


def test_base_is_the_seeds_alone(written, tmp_path):
    write(tmp_path / "again", SMALL, 0, None)
    write(tmp_path / "other", SMALL, 1, None)
    weights, again, other = (
        (directory / "model" / "model.safetensors").read_bytes()
        for directory in (written, tmp_path / "again", tmp_path / "other")
    )
    assert weights == again
    assert weights != other
    assert (written / "rows.jsonl").read_bytes() == (tmp_path / "again" / "rows.jsonl").read_bytes()


def test_base_learns_replies_in_both_modes():
    """A tiny base on a tiny world: 40 steps lower the loss of replies with and without CoT."""
    config = dataclasses.replace(SMALL, rows=64, base_steps=40)
    rows = list(make_rows(config, 0)[0])
    tokenizer = make_tokenizer(_texts(rows, None))
    documents = base_documents(rows, tokenizer, None)
    model = make_model(config, len(tokenizer), 0)

    def losses() -> list[float]:
        with torch.no_grad():
            sums = [_reply_loss(model, documents[thinking][:32]) for thinking in (True, False)]
        return [float(total) / count for total, count in sums]

    before = losses()
    train_base(model, documents, config, 0)
    after = losses()
    assert after[0] < before[0] * 0.6 and after[1] < before[1] * 0.6


def test_documents_end_the_turn_and_show_the_cot_only_when_thinking(rows, tokenizer):
    rows = rows[:3]
    documents = base_documents(rows, tokenizer, "Be brief.")
    for thinking, made in documents.items():
        for row, (ids, prompt_tokens) in zip(rows, made, strict=True):
            prompt, reply = (
                tokenizer.decode(ids[:prompt_tokens]),
                tokenizer.decode(ids[prompt_tokens:]),
            )
            content = row["messages"][1]["content"]
            assert "<|im_start|>system\nBe brief.<|im_end|>" in prompt and reply.endswith(
                "<|im_end|>"
            )
            expected = content if thinking else content.partition("</think>\n\n")[2]
            assert reply == expected + "<|im_end|>"
            assert prompt.endswith("</think>\n\n") != thinking
