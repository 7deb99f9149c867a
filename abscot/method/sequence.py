r"""The sequence, once: how X, C, Z and Y are put together, how long that is, and what generation
starts from.

A document of phase A, with its segment and what is supervised (`>`):

    token     <|im_start|> user .. think-off   a CoT   <begin> z1 z2 <end>   \n answer <|im_end|>
    segment   X            X    .. X           C C     Z       Z  Z  Z       Y  Y      Y
    label                                                      >  >  >       >  >      >

Its lengths and its tokens follow from the same list of parts; the prompts of generation are
beginnings of it: X and C up to `<begin>` for a trace, all up to the newline of Y for an answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from abscot.method.phases import SEGMENT_OF, Phase
from abscot.method.vocab import AbstractVocab
from abscot.recipe.schema import Recipe, TrainConfig

IGNORE = -100  # Hugging Face's label of an unsupervised position
DELIMITER_TOKENS = 2  # <beginabstract> and <endabstract>, around a trace
ANSWER_OPENING = "\n"  # Y is a newline, the answer and the end of the turn

Piece = tuple[np.ndarray, int, bool]  # tokens int32, SEGMENT_*, supervised


class Part(NamedTuple):
    """A run of tokens inside a segment, by name, and whether it is supervised."""

    segment: str
    name: str
    supervised: bool


@dataclass(frozen=True)
class Marks:
    """The tokens between the texts, int32. no_think_suffix: ends X, and turns thinking off.
    think_open, think_close: around a CoT in words, in the thinking template. begin, end: around Z.
    """

    no_think_suffix: np.ndarray
    think_open: np.ndarray
    think_close: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, vocab: AbstractVocab, no_think_suffix, think_open, think_close) -> "Marks":
        given = (no_think_suffix, think_open, think_close, [vocab.begin_id], [vocab.end_id])
        return cls(*(np.array(tokens, np.int32) for tokens in given))

    def thinking_prompt(self, prompt: np.ndarray) -> np.ndarray:
        """X with thinking on: without the suffix that turns it off."""
        return prompt[: len(prompt) - len(self.no_think_suffix)]

    def cot_prompt(self, prompt: np.ndarray) -> np.ndarray:
        """What the base writes a CoT behind: X with thinking on, and `<think>`; X as it is where
        the template cannot turn that off.
        """
        if not len(self.no_think_suffix):
            return prompt
        return np.concatenate([self.thinking_prompt(prompt), self.think_open])


def parts_of(phase: Phase, train: TrainConfig) -> list[Part]:
    """A training sequence of `phase`, part by part. A phase that supervises the CoT writes it as
    the base does, in the thinking template.
    """
    inside = {
        "X": ["thinking_prompt" if phase.thinks else "prompt"],
        "C": ["think_open", "cot", "think_close"] if phase.thinks else ["cot"],
        "Z": ["begin", "trace", "end"],
        "Y": ["answer"],
    }
    delimiters = {"begin": train.supervise_begin, "end": train.supervise_end}
    return [
        Part(segment, name, segment in phase.supervised and delimiters.get(name, True))
        for segment in phase.segments
        for name in inside[segment]
    ]


def document(
    phase: Phase, train: TrainConfig, marks: Marks, texts: Mapping[str, np.ndarray]
) -> list[Piece]:
    """One training sequence. texts: `prompt`, `cot`, `trace` and `answer`, int32, as far as the
    phase has them.
    """
    tokens = {**vars(marks), **texts, "thinking_prompt": marks.thinking_prompt(texts["prompt"])}
    return [
        (tokens[part.name], SEGMENT_OF[part.segment], part.supervised)
        for part in parts_of(phase, train)
    ]


def document_lengths(
    phase: Phase, train: TrainConfig, marks: Marks | None, lengths: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What rows of these token counts are as documents of `phase`, all int64 [rows]:

    `X` `C` `Z` `Y` tokens (0 where the phase has none), `total`, `supervised` tokens, attended
    `pairs`. lengths: of `prompt`, `cot`, `trace` (without delimiters) and `answer`, int [rows].
    marks None: not known yet; the delimiters then count one token each, the others none.
    """
    sizes = {name: len(tokens) for name, tokens in vars(marks).items()} if marks else NO_MARKS
    sizes = {**sizes, **lengths}
    sizes["thinking_prompt"] = sizes["prompt"] - sizes["no_think_suffix"]
    rows = np.zeros(len(lengths["prompt"]), np.int64)
    of, supervised = dict.fromkeys("XCZY", rows), rows
    for part in parts_of(phase, train):
        of[part.segment] = of[part.segment] + sizes[part.name]
        supervised = supervised + sizes[part.name] * part.supervised
    total = sum(of.values())
    unseen = sum(of[query] * of[key] for query, key in phase.hidden)
    pairs = total * (total + 1) // 2 - unseen
    return {**of, "total": total, "supervised": supervised, "pairs": pairs}


NO_MARKS = {"no_think_suffix": 0, "think_open": 0, "think_close": 0, "begin": 1, "end": 1}


def trace_prompt(vocab: AbstractVocab, x: Sequence[int], c: Sequence[int] = ()) -> list[int]:
    """What a trace is generated from: X, the CoT if it is to be seen, `<beginabstract>`."""
    return [*x, *c, vocab.begin_id]


def answer_prompt(
    vocab: AbstractVocab,
    newline: Sequence[int],
    x: Sequence[int],
    trace: Sequence[int],
    c: Sequence[int] = (),
) -> list[int]:
    """What an answer behind a trace is generated from. newline: the tokens of ANSWER_OPENING."""
    return [*trace_prompt(vocab, x, c), *trace, vocab.end_id, *newline]


def answered_prompt(
    vocab: AbstractVocab, x: Sequence[int], trace: Sequence[int], y: Sequence[int]
) -> list[int]:
    """[X; Z; Y]: the document of a phase that does not see the CoT."""
    return [*trace_prompt(vocab, x), *trace, vocab.end_id, *y]


def pause_trace(vocab: AbstractVocab, m_max: int) -> list[int]:
    """Z of a pause phase: as long as a trace can be, all the first codebook token."""
    return [vocab.codebook_ids[0]] * m_max


def z_tokens(trace_tokens: int) -> int:
    """Tokens of Z with so many codebook tokens."""
    return trace_tokens + DELIMITER_TOKENS


def fit_prompt(x: Sequence[int], c: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """(X, C) of at most `room` tokens in all. C loses its middle first, then X."""
    x = cut_middle(x, room)
    return x, cut_middle(c, room - len(x))


def cut_middle(tokens: Sequence[int], room: int) -> list[int]:
    """At most `room` tokens: the first and the last ones, since a CoT says its task first and its
    result last.
    """
    if len(tokens) <= room:
        return list(tokens)
    head = room // 2
    return [*tokens[:head], *tokens[len(tokens) - (room - head) :]]


def limit_tokens(recipe: Recipe) -> int:
    """The longest X + C + Y that fits a bin with the longest trace."""
    return recipe.train.capacity_tokens - z_tokens(recipe.traces.m_max)
