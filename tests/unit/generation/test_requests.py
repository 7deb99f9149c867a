"""A trace that breaks a rule is no data."""

import pytest

from abscot.generation.requests import Completion, codebook_tokens_of
from kit.rules import RULES


def test_a_trace_that_breaks_a_rule_is_no_data(vocab):
    good = list(vocab.codebook_ids[:3])
    assert codebook_tokens_of(Completion([*good, vocab.end_id], "stop", 1, 0), vocab, RULES) == good
    assert codebook_tokens_of(Completion(good * 4, "length", 1, 0), vocab, RULES) == good * 4
    for bad in ([*good, 5], [good[0], vocab.end_id], good * 5, [vocab.end_id, *good]):
        with pytest.raises(ValueError, match="outside V_abs"):
            codebook_tokens_of(Completion(bad, "stop", 1, 0), vocab, RULES)
