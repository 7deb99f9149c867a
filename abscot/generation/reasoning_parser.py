"""Tells traces from answers in vLLM's HTTP server: `vllm serve MODEL --reasoning-parser abstract`.

    generated:  <TOKEN_C> <TOKEN_A> .. <endabstract> \\n The answer.
    message:    reasoning "<TOKEN_C><TOKEN_A>.."        content "The answer."

`<beginabstract>` stands at the end of the prompt, whose token ids say whether a trace was asked for
at all. Text comes from vLLM in pieces of any length, held back where stop strings are looked for,
so what is reasoning and what is content follows from all text so far: streamed pieces add up to the
whole message.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser

from abscot.generation.decoding import TraceTokens
from abscot.method.sequence import ANSWER_OPENING
from abscot.method.vocab import BEGIN, END, codebook_tokens

OPENING = END + ANSWER_OPENING
MOST_BIASED = 1024  # tokens whose logits a request may bias: of vLLM
DIRECTLY = "or ask for a direct answer (chat_template_kwargs: abstract: false)"


@dataclass(frozen=True)
class Shape:
    """What a model's messages look like. message: its groups are the trace and the answer, None
    where that has not begun. said: the text of every trace token and what is forced behind them.
    """

    tokens: TraceTokens
    codes: frozenset[int]
    message: re.Pattern
    said: str

    @classmethod
    @functools.lru_cache(maxsize=8)  # a parser is made for every request
    def of(cls, tokenizer) -> "Shape":
        """Raises RuntimeError for a tokenizer without abstract tokens."""
        tokens = TraceTokens.of(tokenizer)
        if tokens is None:
            raise RuntimeError("its tokenizer has no abstract tokens, <beginabstract> and the rest")
        names = codebook_tokens(len(tokens.vocab.codebook_ids))
        pattern = f"((?:{'|'.join(names)})*)(?:{END}(?:{ANSWER_OPENING}(.*))?)?"
        codes = frozenset(tokens.vocab.codebook_ids)
        return cls(tokens, codes, re.compile(pattern, re.DOTALL), "".join(names) + OPENING)

    def split(self, text: str) -> tuple[str, str | None]:
        """(trace, answer) of all that a trace's request has said so far: of a last token that is
        not there as a whole nothing.
        """
        found = self.message.match(text)
        return found[1], found[2]


class AbstractReasoningParser(BaseThinkingReasoningParser):
    """One request's parser; structured output has one of its own, inside the engine. Raises
    RuntimeError for a tokenizer without abstract tokens.
    """

    start_token, end_token = BEGIN, END

    def __init__(self, tokenizer, *args, **kwargs):
        super().__init__(tokenizer, *args, **kwargs)
        self.shape = Shape.of(tokenizer)
        # Where a parser is not told the prompt, what the template was told has to do.
        self.asked = bool((kwargs.get("chat_template_kwargs") or {}).get("abstract", True))
        self.streams, self.answer_began = False, False

    def adjust_request(self, request):
        """Traces are text here, special tokens though they are, and a direct answer has no token of
        one, though the model has learnt to write them. Raises ValueError for what would end an
        answer before it begins.
        """
        if not self.asked:
            vocab = self.shape.tokens.vocab
            barred = [vocab.begin_id, vocab.end_id, *vocab.codebook_ids][:MOST_BIASED]
            request.logit_bias = {str(i): -100.0 for i in barred} | (request.logit_bias or {})
            return request
        stop = getattr(request, "stop", None) or []
        for text in [stop] if isinstance(stop, str) else stop:
            if text and text in self.shape.said:
                raise ValueError(
                    f"stop: {text!r} stands in a trace or at its end, where the answer has not "
                    f"begun; leave it out, {DIRECTLY}"
                )
        # vLLM would hold the trace to the format of the answer.
        if not request.include_reasoning and request.extract_structured_outputs() is not None:
            raise ValueError(
                "include_reasoning: false does not go with a format that is asked for; leave it "
                f"out, {DIRECTLY}"
            )
        request.skip_special_tokens = False
        if hasattr(request, "spaces_between_special_tokens"):
            request.spaces_between_special_tokens = False
        return request

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether an answer comes next: behind trace, `<endabstract>` and newline, and wherever no
        trace was begun.
        """
        tokens = self.shape.tokens
        begun = tokens.begun(input_ids)
        return begun is None or 0 <= begun.end_at < begun.tokens - len(tokens.newline)

    def is_reasoning_end_streaming(
        self, input_ids: Sequence[int], delta_ids: Iterable[int]
    ) -> bool:
        """Of streamed text: whether the answer has begun in it, since text that is held back for
        stop strings comes later than its tokens. Of structured output: whether it comes next.
        """
        return self.answer_began if self.streams else self.is_reasoning_end(input_ids)

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The answer's tokens."""
        if self.end_token_id not in input_ids:
            return []
        behind = input_ids.index(self.end_token_id) + 1
        return input_ids[behind + len(self.shape.tokens.newline) :]

    def extract_reasoning(self, model_output: str, request) -> tuple[str | None, str | None]:
        """(reasoning, content) of a whole message; what is not one with a trace is all content."""
        if not self.asked or not self.shape.message.fullmatch(model_output):
            return None, model_output
        trace, answer = self.shape.split(model_output)
        return trace or None, answer

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """What a piece adds, behind a prompt that has begun a trace."""
        before, (trace, answer) = self.shape.split(previous_text)[0], self.shape.split(current_text)
        self.streams, self.answer_began = True, answer is not None
        reasoning = trace[len(before) :]
        if not reasoning and not answer:
            return None
        return DeltaMessage(reasoning=reasoning or None, content=answer or None)

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Generated tokens up to and including `<endabstract>`; none of a direct answer."""
        if not self.asked:
            return 0
        trace = list(itertools.takewhile(self.shape.codes.__contains__, token_ids))
        behind = token_ids[len(trace) :]
        if not behind:
            return len(trace)
        return len(trace) + 1 if behind[0] == self.end_token_id else 0
