"""What is reasoning and what content, of texts and tokens without a server."""

import pytest

from kit.tiny_run import plain_tokenizer, tiny_tokenizer

pytestmark = pytest.mark.vllm

TEXTS = {  # text -> (reasoning, content), of a request with a trace
    "<TOKEN_A><TOKEN_BL><endabstract>\nhi\n<endabstract><TOKEN_A>": (
        "<TOKEN_A><TOKEN_BL>",
        "hi\n<endabstract><TOKEN_A>",
    ),
    "<TOKEN_A><endabstract>\n\n": ("<TOKEN_A>", "\n"),
    "<TOKEN_A><endabstract>\n": ("<TOKEN_A>", ""),
    "<TOKEN_A><endabstract>": ("<TOKEN_A>", None),
    "<TOKEN_A>": ("<TOKEN_A>", None),
    "<endabstract>\nhi": (None, "hi"),
}
DIRECT = ["", "hi", "<TOKEN_A> hi", "<beginabstract><TOKEN_A><endabstract>\nhi", "<TOKEN_A><TOK"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def make_parser(tokenizer, **arguments):
    from abscot.generation.reasoning_parser import AbstractReasoningParser

    return AbstractReasoningParser(tokenizer, chat_template_kwargs=arguments)


def test_whole_messages(tokenizer):
    for text, expected in TEXTS.items():
        assert make_parser(tokenizer).extract_reasoning(text, None) == expected
        assert make_parser(tokenizer, abstract=False).extract_reasoning(text, None) == (None, text)
    for text in DIRECT:
        said = [part for part in make_parser(tokenizer).extract_reasoning(text, None) if part]
        assert said == [text][: len(text)]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_pieces_of_any_length_add_up(tokenizer, size):
    """Tokens are known before their text, as with stop strings: all of them at once."""
    for text, (reasoning, content) in TEXTS.items():
        parser = make_parser(tokenizer)
        tokens = tokenizer.encode(text, add_special_tokens=False)
        said, answered, ended = "", "", False
        for at in range(0, len(text), size):
            before, now = text[:at], text[: at + size]
            if ended:
                answered += now[len(before) :]
                continue
            piece = parser.extract_reasoning_streaming(
                before, now, now[at:], tokens if at else [], tokens, [] if at else tokens
            )
            if piece is not None:
                said, answered = said + (piece.reasoning or ""), answered + (piece.content or "")
            ended = parser.is_reasoning_end_streaming(tokens, [])
        assert (said, answered) == (reasoning or "", content or "")


def test_tokens_say_where_an_answer_begins(tokenizer):
    parser = make_parser(tokenizer)
    vocab, newline = parser.shape.tokens.vocab, parser.shape.tokens.newline
    begun = [40, 41, vocab.begin_id]
    trace = [*begun, *vocab.codebook_ids[:2], vocab.end_id]
    for tokens in (begun, begun + [vocab.codebook_ids[0]], trace):
        assert not parser.is_reasoning_end(tokens)
        assert not parser.is_reasoning_end_streaming(tokens, tokens[-1:])
    answer = [*trace, *newline]
    for tokens in ([], [40, 41], answer, [*answer, 42], [vocab.begin_id, 40]):
        assert parser.is_reasoning_end(tokens)
        assert parser.is_reasoning_end_streaming(tokens, tokens[-1:])
    assert parser.extract_content_ids([*answer, 42, 43]) == [42, 43]
    assert parser.extract_content_ids(begun) == []


def test_reasoning_tokens_are_counted(tokenizer):
    parser = make_parser(tokenizer)
    vocab, codes = parser.shape.tokens.vocab, parser.shape.tokens.vocab.codebook_ids
    whole = (*codes[:3], vocab.end_id, 10, 40, codes[0])
    assert [parser.count_reasoning_tokens(whole[:n]) for n in range(6)] == [0, 1, 2, 3, 4, 4]
    assert parser.count_reasoning_tokens(list(whole)) == 4
    assert parser.count_reasoning_tokens([40, codes[0], vocab.end_id]) == 0
    assert make_parser(tokenizer, abstract=False).count_reasoning_tokens(whole) == 0


def test_a_model_without_abstract_tokens_is_refused():
    with pytest.raises(RuntimeError, match="token"):
        make_parser(plain_tokenizer())
