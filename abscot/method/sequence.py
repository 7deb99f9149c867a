"""How X, C, Z and Y are put together."""

from collections.abc import Sequence

import numpy as np

from abscot.common.errors import UserError
from abscot.method.phases import Phase
from abscot.recipe.schema import Recipe, TrainConfig

IGNORE = -100


Piece = tuple[np.ndarray, int, bool]  # tokens int32, SEGMENT_*, supervised


def cut_middle(tokens: Sequence[int], room: int) -> list[int]:
    """At most `room` tokens: the first and the last ones, since a CoT says its task first and its
    result last.
    """
    if len(tokens) <= room:
        return list(tokens)
    head = room // 2
    return [*tokens[:head], *tokens[len(tokens) - (room - head) :]]


def document_lengths(
    phase: Phase,
    prompt: np.ndarray,
    cot: np.ndarray,
    answer: np.ndarray,
    trace: np.ndarray,
    train: TrainConfig,
    suffix_tokens: int = 0,
    think_tokens: int = 0,
) -> dict[str, np.ndarray]:
    """What rows of these token counts are as documents of `phase`, all int64 [rows]:

    `X` `C` `Z` `Y` tokens (0 where the phase has none), `total`, `supervised` tokens, attended
    `pairs`. trace: codebook tokens without delimiters. A phase that supervises the CoT uses the
    thinking template: X without the suffix that turns thinking off, C with the think marks.
    """
    thinks = phase.thinks
    of = {
        "X": prompt - suffix_tokens * thinks,
        "C": cot + think_tokens * thinks,
        "Z": trace + 2,
        "Y": answer,
    }
    of = {name: n.astype(np.int64) * (name in phase.segments) for name, n in of.items()}
    total = sum(of.values())
    supervised = sum(of[name] for name in phase.supervised)
    if "Z" in phase.supervised:
        supervised = supervised - (not train.supervise_begin) - (not train.supervise_end)
    unseen = sum(of[query] * of[key] for query, key in phase.hidden)
    pairs = total * (total + 1) // 2 - unseen
    return {**of, "total": total, "supervised": supervised, "pairs": pairs}


def limit_tokens(recipe: Recipe) -> int:
    """The longest X + C + Y that fits a bin with the longest trace and its two delimiters."""
    limit = recipe.train.capacity_tokens - (recipe.traces.m_max + 2)
    if limit <= 0:
        raise UserError(
            f"train.capacity_tokens: {recipe.train.capacity_tokens} leaves no room beside a trace "
            "of"
            f" traces.m_max + 2 = {recipe.traces.m_max + 2} tokens"
        )
    return limit
