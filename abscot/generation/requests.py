"""Constrained two-stage generation from token ids: vLLM, and a small transformers fallback with the
same rules.

    requests = [trace_request(prompt, vocab, recipe.traces, seed) for ...]
    for index, completions in engine.stream(requests): ...

A request may carry a follow-up (`then`): the answer stage starts in the step after its trace is
finished. Where it goes on from the very tokens that the engine holds it continues the same session,
and only the new tokens are computed; where the trace was edited it is a new request that finds the
prompt in the prefix cache. Tokens in, tokens out: text would lose the abstract tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import TraceConfig


@dataclass(frozen=True)
class Sampling:
    """How one request is decoded. temperature 0: greedy. allowed_ids None: every token of the
    vocabulary.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    allowed_ids: tuple[int, ...] | None = None
    stop_ids: tuple[int, ...] = ()
    seed: int = 0


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
class Request:
    """hidden: the bottleneck of phase A; TransformersEngine alone can do it, greedily."""

    prompt: Sequence[int]
    sampling: Sampling
    then: Callable[[Completion], "Request"] | None = (
        None  # the next stage, made from this one's completion
    )
    hidden: HiddenSpan | None = None


class Engine(Protocol):
    """What generates. window_tokens: prompt and completion together, at most."""

    window_tokens: int

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """Yields (index in `requests`, its completions stage by stage) as requests finish."""

    def surprisals(
        self, texts: Sequence[Sequence[int]], positions: Sequence[int]
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

    Only V_abs and the end token can be sampled, the end only after m_min tokens. Decoding stops at
    m_max: the end is forced there by appending it, which costs no step.
    """
    sampling = Sampling(
        max_tokens=config.m_max,
        min_tokens=config.m_min,
        temperature=config.temperature,
        top_p=config.top_p,
        allowed_ids=tuple(vocab.allowed_ids),
        stop_ids=(vocab.end_id,),
        seed=seed,
    )
    return Request(prompt, sampling)


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
    """A request inside the engine. new_tokens: of its prompt, handed in for this stage; in_session:
    generated before.
    """

    index: int
    request: Request
    stages: list[Completion] = field(default_factory=list)
    session: str | None = None
    session_open: bool = False
    new_tokens: int = 0
    in_session: int = 0
