"""What is asked of an engine: traces, answers behind them, or both in one decode.

    requests = [trace_request(prompt, vocab, recipe.traces, seed) for ...]
    for index, completions in engine.stream(requests): ...

Every engine keeps the rules of abstract decoding (decoding.py) by the tokens of the prompt: what
ends in `<beginabstract>` is gone on with by a trace. An answer that stands behind the very trace is
decoded in the same go (`answer`); where the trace is edited first, a second request asks for it
(`then`), and finds the prompt in the prefix cache. Tokens in, tokens out: text would lose the
abstract tokens.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import TraceConfig


@dataclass(frozen=True)
class Sampling:
    """How one text is decoded. temperature 0: greedy. m_min, m_max: codebook tokens of a trace,
    where one is begun.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    m_min: int | None = None
    m_max: int | None = None


@dataclass(frozen=True)
class Completion:
    """tokens: what was generated, a stop token included. cached_tokens: prompt tokens that were not
    computed.
    """

    tokens: list[int]
    finish_reason: str  # stop | length
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class HiddenSpan:
    """Positions start .. stop of a prompt that its tokens from `behind` on, and all that is
    generated, cannot see.
    """

    start: int
    stop: int
    behind: int


@dataclass(frozen=True)
class Behind:
    """The answer that one decode makes behind its trace. opening: the tokens between them, forced:
    `<endabstract>` and the newline. top_p and seed are those of the trace.
    """

    opening: tuple[int, ...]
    max_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """answer: makes a second completion. then: the next request, made from this one's completion.
    hidden: the bottleneck of phase A; TransformersEngine alone can do it, greedily.
    """

    prompt: Sequence[int]
    sampling: Sampling
    answer: Behind | None = None
    then: Callable[[Completion], "Request"] | None = None
    hidden: HiddenSpan | None = None

    def next_stage(self, completion: Completion) -> "Request | None":
        """What is asked next, where each stage is a request of its own."""
        if self.answer is None:
            return self.then and self.then(completion)
        end_id = self.answer.opening[0]
        trace = [token for token in completion.tokens if token != end_id]
        sampling = dataclasses.replace(
            self.sampling,
            max_tokens=self.answer.max_tokens,
            temperature=self.answer.temperature,
            stop_ids=self.answer.stop_ids,
            m_min=None,
            m_max=None,
        )
        return Request([*self.prompt, *trace, *self.answer.opening], sampling, then=self.then)


Stepped = Callable[[int], object]  # told after each step how many prompt tokens are computed


def untold(tokens: int) -> None:
    """A `Stepped` that tells nobody."""


class Engine(Protocol):
    """What generates. window_tokens: prompt and completion together, at most. stepped: told after
    each step, for what shows that it is alive while nothing finishes.
    """

    window_tokens: int

    def stream(
        self, requests: Sequence[Request], stepped: Stepped = untold
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yields (index in `requests`, its completions stage by stage) as requests finish."""

    def surprisals(
        self,
        texts: Sequence[Sequence[int]],
        positions: Sequence[int],
        stepped: Stepped = untold,
    ) -> list[list[float]]:
        """-log p in nats of the last tokens of each text, each given those before it; positions:
        how many of each text, fewer than it has tokens. A text is shorter than window_tokens.
        """

    def forget(self) -> None:
        """What is computed next depends on nothing that was computed before."""


def trace_request(
    prompt: Sequence[int], vocab: AbstractVocab, config: TraceConfig, seed: int
) -> Request:
    """The trace stage behind a prompt that ends in `<beginabstract>`.

    Decoding stops at m_max: the end is forced there by appending it, which costs no step.
    """
    sampling = Sampling(
        max_tokens=config.m_max,
        temperature=config.temperature,
        top_p=config.top_p,
        stop_ids=(vocab.end_id,),
        seed=seed,
        m_min=config.m_min,
        m_max=config.m_max,
    )
    return Request(prompt, sampling)


def answered_request(
    prompt: Sequence[int],
    vocab: AbstractVocab,
    config: TraceConfig,
    newline: Sequence[int],
    answer: Sampling,
) -> Request:
    """Trace and answer in one decode, behind a prompt that ends in `<beginabstract>`. newline: the
    tokens of ANSWER_OPENING.
    """
    assert answer.top_p == config.top_p, "one decode has one top_p"
    trace = trace_request(prompt, vocab, config, answer.seed)
    opening = (vocab.end_id, *newline)
    behind = Behind(opening, answer.max_tokens, answer.temperature, answer.stop_ids)
    return dataclasses.replace(trace, answer=behind)


def staged(tokens: Iterator[int], request: Request) -> Iterator[tuple[int, int]]:
    """(stage, token) of what one decode of `request` makes, one by one: stage 0 is all of it, or
    the trace with its end where it also answers; stage 1 that answer. Forced tokens between them
    belong to neither, and behind the limit of the answer nothing is asked for.
    """
    if request.answer is None:
        yield from ((0, token) for token in tokens)
        return
    end_id, *newline = request.answer.opening
    for token in tokens:
        yield 0, token
        if token == end_id:
            break
    answer = itertools.islice(tokens, len(newline), len(newline) + request.answer.max_tokens)
    yield from ((1, token) for token in answer)


def codebook_tokens_of(
    completion: Completion, vocab: AbstractVocab, config: TraceConfig
) -> list[int]:
    """The trace without its delimiters. Raises ValueError if the engine broke a rule: such a trace
    is no data.
    """
    tokens = completion.tokens
    trace = tokens[:-1] if tokens and tokens[-1] == vocab.end_id else tokens
    if not set(trace) <= set(vocab.codebook_ids) or not config.m_min <= len(trace) <= config.m_max:
        raise ValueError(f"the engine returned a trace outside V_abs or [m_min, m_max]: {tokens}")
    return trace


@dataclass
class Running:
    """A request inside an engine, and what it has made so far."""

    index: int
    request: Request
    stages: list[Completion] = field(default_factory=list)
