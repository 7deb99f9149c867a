r"""The steps of a CoT: at which tokens their hidden states are read, and how many codes each gets.

A step is a line of the CoT. `end` reads the state at its last token, `before_result` at the token
before its last word, where the model holds what it is about to write:

    token   Swap   1   :   the   ball   is   under   C   .   \n
                                               ^             ^
                                               before_result end
"""

from dataclasses import dataclass

import numpy as np

from abscot.data.rows import Row
from abscot.recipe.schema import GroundingConfig, TraceConfig

BEFORE_RESULT = "before_result"


@dataclass(frozen=True)
class Words:
    """What words look like in a tokenizer, bool [ids]: has a letter or digit; begins with one, so
    that it goes on with a word before it; ends with one.
    """

    has: np.ndarray
    goes_on: np.ndarray
    open_end: np.ndarray

    @classmethod
    def of(cls, tokenizer) -> "Words":
        backend = tokenizer.backend_tokenizer
        size = backend.get_vocab_size(with_added_tokens=True)
        alone = backend.decode_batch([[i] for i in range(size)], skip_special_tokens=False)
        # A token may spell the space before it only behind another one.
        letter = next(i for i, text in enumerate(alone) if len(text) == 1 and text.isalpha())
        pairs = [[letter, i] for i in range(size)]
        texts = [t[1:] for t in backend.decode_batch(pairs, skip_special_tokens=False)]
        return cls(
            np.array([any(map(_in_word, text)) for text in texts]),
            np.array([text != "" and _in_word(text[0]) for text in texts]),
            np.array([text != "" and _in_word(text[-1]) for text in texts]),
        )


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "\ufffd"  # bytes of a letter that takes several tokens


@dataclass(frozen=True)
class Reading:
    """Of one row: the states to read, by their tokens in C, int64 ascending, -1 the token before
    it, and the codes of each. steps: lines with a letter or digit; blank_steps: the others, which
    belong to the step before them.
    """

    positions: np.ndarray
    codes_per_state: int
    steps: int
    blank_steps: int

    @property
    def cut(self) -> bool:
        """Were there more steps than states?"""
        return self.steps > len(self.positions)


def read_steps(row: Row, words: Words, traces: TraceConfig, grounding: GroundingConfig) -> Reading:
    """Where the states of a row are, so that its trace has m_min to m_max codes.

    Each step has tokens_per_step codes. Where that is more than m_max, the steps are cut into runs
    of as equal numbers as possible, and a run has the state of its last step; where it is less than
    m_min, each step has more codes. A CoT without any step is taken as one, which ends at its last
    token, or before it where it has none.
    """
    firsts, lasts, blank = _steps(row, words)
    most, least, steps = traces.m_max, traces.m_min, len(lasts)
    codes = min(grounding.tokens_per_step, most)
    if not steps:
        end = np.array([len(row.cot) - 1])
        return Reading(end, max(codes, least), 0, blank)
    states = min(steps, most // codes)
    if states * codes < least:
        states = min(steps, -(-least // codes))
        codes = max(codes, -(-least // states))
    read = np.arange(1, states + 1) * steps // states - 1
    if grounding.position == BEFORE_RESULT:
        of_step = zip(firsts[read].tolist(), lasts[read].tolist(), strict=True)
        at = np.array([_last_word(row.cot, *step, words) - 1 for step in of_step])
    else:
        at = lasts[read]
    return Reading(at, codes, steps, blank)


def _steps(row: Row, words: Words) -> tuple[np.ndarray, np.ndarray, int]:
    """First and last tokens of the steps in C, and how many lines are blank."""
    ends = np.cumsum(row.cot_steps, dtype=np.int64)
    starts = ends - row.cot_steps
    spoken = np.add.reduceat(words.has[row.cot], starts) > 0 if len(starts) else starts > 0
    firsts = starts[spoken]
    lasts = np.append(firsts[1:], ends[-1:])[: len(firsts)] - 1
    return firsts, lasts, int((~spoken).sum())


def _last_word(tokens: np.ndarray, first: int, last: int, words: Words) -> int:
    """Index of the first token of the last word in tokens[first : last + 1], which has one."""
    at = last
    while not words.has[tokens[at]]:
        at -= 1
    while at > first and words.goes_on[tokens[at]] and words.open_end[tokens[at - 1]]:
        at -= 1
    return at
