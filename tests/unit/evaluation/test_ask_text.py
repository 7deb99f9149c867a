"""Text grows by whole characters; what is a trace, a thought, an answer."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abscot.evaluation.ask_text import ANSWER, THOUGHT, TRACE, GrowingText, Piece, Pieces
from abscot.method.vocab import AbstractVocab
from kit.tiny_run import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # a token a byte


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@given(st.text(max_size=30))
def test_text_grows_by_whole_characters_into_what_is_decoded_at_once(text):
    tokens, growing, shown = ids(text), GrowingText(TOKENIZER), ""
    whole = TOKENIZER.decode(tokens, skip_special_tokens=False).strip()
    for token in tokens:
        shown += growing.step(token)
        assert whole.startswith(shown)
    assert shown + growing.rest(whole) == whole


def test_a_character_of_several_tokens_appears_with_its_last_one():
    growing = GrowingText(TOKENIZER)
    pieces = [growing.step(token) for token in ids(" 5 €\n🎲 \n")]
    assert [piece for piece in pieces if piece] == ["5", " €", "\n🎲"]
    assert len(pieces) == len(" 5 €\n🎲 \n".encode())


def test_a_character_that_is_cut_off_is_shown_at_the_end():
    growing, tokens = GrowingText(TOKENIZER), ids("a€")[:-1]
    assert "".join(map(growing.step, tokens)) == "a"
    assert growing.rest(TOKENIZER.decode(tokens)) == "�"


@given(st.lists(st.integers(0, 255), max_size=40))
def test_bytes_that_are_no_text_end_nothing(tokens):
    growing = GrowingText(TOKENIZER)
    for token in tokens:
        growing.step(token)


@pytest.fixture
def pieces():
    """(mode, [(stage, token)]) -> pieces."""
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    asker = SimpleNamespace(tokenizer=TOKENIZER, stop_ids=(end,), vocab=AbstractVocab.of(TOKENIZER))

    def read(mode, tokens):
        reader = Pieces(asker, mode)
        return [piece for token in tokens if (piece := reader.step(*token))]

    return read


def test_a_trace_is_shown_code_by_code_and_the_end_of_the_turn_is_not(pieces):
    vocab, end = AbstractVocab.of(TOKENIZER), TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    trace = [(0, vocab.codebook_ids[0]), (0, vocab.codebook_ids[63]), (0, vocab.end_id)]
    assert pieces("abstract", [*trace, *((1, t) for t in ids("5!")), (1, end)]) == [
        Piece(TRACE, "<TOKEN_A>"),
        Piece(TRACE, "<TOKEN_BL>"),
        Piece(ANSWER, "5"),
        Piece(ANSWER, "!"),
    ]


def test_a_thought_ends_where_the_answer_begins(pieces):
    text = "<think>\nab</think>\n\nc<|im_end|>"
    assert pieces("thinking", [(0, token) for token in ids(text)]) == [
        Piece(THOUGHT, "a"),
        Piece(THOUGHT, "b"),
        Piece(ANSWER, "c"),
    ]
    assert [p.kind for p in pieces("thinking", [(0, t) for t in ids("ab")])] == [ANSWER, ANSWER]
    assert pieces("verbal", [(0, token) for token in ids("a")]) == [Piece(ANSWER, "a")]
