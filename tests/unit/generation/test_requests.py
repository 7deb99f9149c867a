"""A trace that breaks a rule is no data."""

import pytest

from abscot.generation.requests import (
    Behind,
    Completion,
    Request,
    Sampling,
    codebook_tokens_of,
    staged,
)
from kit.rules import RULES


def test_a_trace_that_breaks_a_rule_is_no_data(vocab):
    good = list(vocab.codebook_ids[:3])
    assert codebook_tokens_of(Completion([*good, vocab.end_id], "stop", 1, 0), vocab, RULES) == good
    assert codebook_tokens_of(Completion(good * 4, "length", 1, 0), vocab, RULES) == good * 4
    for bad in ([*good, 5], [good[0], vocab.end_id], good * 5, [vocab.end_id, *good]):
        with pytest.raises(ValueError, match="outside V_abs"):
            codebook_tokens_of(Completion(bad, "stop", 1, 0), vocab, RULES)


def test_one_decode_comes_apart_into_its_stages_token_by_token(vocab):
    """Forced tokens belong to neither, and behind the limit nothing is asked for."""
    z, end, newline = list(vocab.codebook_ids[:3]), vocab.end_id, 10
    asked = Request([1], Sampling(9), Behind((end, newline), 2, 0.0, (3,)))
    decoded = iter([*z, end, newline, 5, 6, 7])
    assert list(staged(decoded, asked)) == [*((0, t) for t in (*z, end)), (1, 5), (1, 6)]
    assert list(decoded) == [7]
    assert list(staged(iter([5, 3]), Request([1], Sampling(9)))) == [(0, 5), (0, 3)]
