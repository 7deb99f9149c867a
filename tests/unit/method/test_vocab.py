"""The abstract vocabulary: its names, and tokenizers without it."""

import pytest

from abscot.common.errors import UserError
from abscot.method.vocab import AbstractVocab, codebook_tokens
from kit.letters import tokenizer_of


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
    with pytest.raises(UserError, match="<beginabstract>"):
        AbstractVocab.of(tokenizer_of(50))
