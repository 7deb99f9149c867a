"""Examples -> rows of token ids that fit a bin; what happens to those that do not."""

from dataclasses import dataclass, replace

import numpy as np

from abscot.data.chat import ChatTokenizer
from abscot.data.formats import Example
from abscot.data.rejected import Rejected


@dataclass(frozen=True)
class Row:
    """One tokenised example. Arrays are np.int32 views of the mapped file; cot_steps sums up to
    len(cot).
    """

    id: str
    prompt: np.ndarray
    cot: np.ndarray
    cot_steps: np.ndarray
    answer: np.ndarray
    source: str


def tokenise(examples: list[Example], chat: ChatTokenizer) -> list[Row | None]:
    """Rows of token ids; None where the chat template refuses the turns."""
    prompts = chat.prompts([e.messages for e in examples])
    cots, answers = chat.cots([e.cot for e in examples]), chat.answers([e.answer for e in examples])
    return [
        None if prompt is None else Row(e.id, prompt, cot, steps, answer, e.source)
        for e, prompt, (cot, steps), answer in zip(examples, prompts, cots, answers, strict=True)
    ]


def fit(row: Row | None, limit: int, policy: str) -> Row:
    """The row, its CoT cut where the policy says so and the row has more than `limit` tokens.

    truncate_cot_left drops the CoT's beginning, _middle its middle, _right its end; prompt and
    answer stay whole. Raises Rejected for a row that stays too long.
    """
    if row is None:
        raise Rejected("refused_by_template")
    total = len(row.prompt) + len(row.cot) + len(row.answer)
    if total <= limit:
        return row
    room = limit - len(row.prompt) - len(row.answer)
    if policy == "drop" or room <= 0:
        raise Rejected("too_long", f"{total} tokens, room for {limit}", total)
    head = {"truncate_cot_left": 0, "truncate_cot_middle": room // 2, "truncate_cot_right": room}[
        policy
    ]
    kept = np.r_[0:head, len(row.cot) - (room - head) : len(row.cot)]
    steps = np.bincount(np.repeat(np.arange(len(row.cot_steps)), row.cot_steps)[kept])
    return replace(row, cot=row.cot[kept], cot_steps=steps[steps > 0].astype(np.int32))
