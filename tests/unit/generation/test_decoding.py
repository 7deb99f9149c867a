"""The rules of abstract decoding, token by token."""

import math

import pytest
import torch

from abscot.generation.decoding import (
    CODES,
    CODES_OR_END,
    END,
    FREE,
    NEWLINE,
    Begun,
    Rules,
    TraceTokens,
    stage_temperature,
)
from abscot.method.vocab import AbstractVocab
from kit.tiny_run import tiny_tokenizer

VOCAB = AbstractVocab((10, 11, 12), 20, 21)
TOKENS = TraceTokens(VOCAB, (5, 6))
RULES = Rules(TOKENS, "cpu")
ANSWER = NEWLINE + 2


@pytest.mark.parametrize(
    "prompt, begun",
    [
        ([1, 2, 20], Begun(0, -1)),
        ([1, 20, 10, 11], Begun(2, -1)),  # a trace that is gone on with
        ([1, 20, 10, 21], Begun(2, 1)),
        ([1, 20, 10, 12, 21, 5], Begun(4, 2)),
        ([1, 20, 10, 21, 5, 6], Begun(4, 1)),
        ([20, 10, 21, 5, 6, 1, 20], Begun(0, -1)),  # an earlier turn had a trace
        ([1, 2], None),
        ([], None),
        ([20, 1], None),  # something else stands behind it
        ([1, 20, 10, 21, 6], None),  # not the newline
        ([1, 20, 21, 10], None),
        ([1, 20, 5], None),
        ([1, 20, 10, 21, 5, 6, 5], None),  # the answer has begun
    ],
)
def test_a_prompt_stands_under_the_rules_from_its_begin_token_on(prompt, begun):
    assert TOKENS.begun(prompt) == begun


def test_what_may_come_next_follows_from_the_tokens_so_far():
    tokens = torch.tensor([0, 1, 2, 3, 4, 4, 5, 6, 90])
    end_at = torch.tensor([-1, -1, -1, -1, -1, 3, 3, 3, 3])
    kinds = RULES.kinds(tokens, end_at, torch.tensor(2), torch.tensor(4))
    wanted = [CODES, CODES, CODES_OR_END, CODES_OR_END, END, NEWLINE, NEWLINE + 1, ANSWER, ANSWER]
    assert kinds.tolist() == wanted


def allowed_after(kind: int) -> set[int]:
    logits = torch.arange(30.0).repeat(1, 1) - 50
    RULES.edit(logits, torch.tensor([kind]))
    return {i for i, value in enumerate(logits[0].tolist()) if value > -math.inf}


def test_each_kind_bars_what_it_must():
    everything = set(range(30))
    assert allowed_after(FREE) == everything
    assert allowed_after(CODES) == {10, 11, 12}
    assert allowed_after(CODES_OR_END) == {10, 11, 12, 21}
    assert [allowed_after(kind) for kind in (END, NEWLINE, NEWLINE + 1)] == [{21}, {5}, {6}]
    assert allowed_after(ANSWER) == everything - {10, 11, 12, 20, 21}


def test_what_is_allowed_keeps_its_logits_and_a_forced_token_has_a_probability():
    logits = torch.randn(3, 30)
    logits[2] = -torch.inf  # all barred by somebody else
    before = logits.clone()
    RULES.edit(logits, torch.tensor([FREE, CODES_OR_END, NEWLINE]))
    assert torch.equal(logits[0], before[0])
    assert torch.equal(logits[1, [10, 11, 12, 21]], before[1, [10, 11, 12, 21]])
    assert logits[2].softmax(-1)[5] == 1


def test_a_stage_has_a_temperature_of_its_own():
    """Behind a sampler that divides by 0.5: a stage at 1.0, one that is greedy, one as it is."""
    stages = [stage_temperature(0.5, stage) for stage in (1.0, 0.0, None)]
    assert stage_temperature(0.0, 0.0) == stage_temperature(0.7, 0.7) == (1.0, False)
    logits = torch.randn(3, 30)
    before = logits.clone()
    scale, greedy = (torch.tensor(values) for values in zip(*stages, strict=True))
    RULES.edit(logits, torch.full((3,), CODES), scale, greedy)
    codes = before[:, 10:13]
    found = (logits / 0.5).softmax(-1)[:, 10:13]
    assert torch.allclose(found[0], codes[0].softmax(-1))
    assert found[1].tolist() == [float(i == codes[1].argmax()) for i in range(3)]
    assert torch.allclose(found[2], (codes[2] / 0.5).softmax(-1))


def test_the_end_is_found_among_the_tokens_behind_the_begin():
    ids = torch.tensor(
        [[9, 20, 10, 21, 5, 21, 0], [20, 10, 11, 0, 0, 0, 0], [9, 9, 9, 20, 21, 0, 0]]
    )
    rows, begin = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 3])
    found = RULES.end_at(ids, rows, begin, torch.tensor([4, 2, 0]), m_max=4)
    assert found.tolist() == [1, -1, -1]  # in the last row it is not known yet


def test_a_tokenizer_without_the_tokens_has_no_rules():
    tokens = TraceTokens.of(tiny_tokenizer())
    assert tokens.vocab.codebook_ids and tokens.newline
    plain = tiny_tokenizer()
    plain.get_vocab = lambda: {"a": 0}
    assert TraceTokens.of(plain) is None
