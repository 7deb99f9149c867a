"""The trace rules of the engine tests, and a vocabulary."""

import pytest

from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import TraceConfig
from kit.tiny_run import tiny_tokenizer

RULES = TraceConfig(m_min=2, m_max=12)


@pytest.fixture(scope="module")
def vocab():
    return AbstractVocab.of(tiny_tokenizer())
