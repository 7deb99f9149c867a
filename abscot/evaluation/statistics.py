"""Accuracy and its uncertainty: bootstrap over problems, paired differences, pass@k."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from abscot.common.draws import rng
from abscot.evaluation.results import ResultRow

DRAWS = 10_000
TAIL = 0.025  # of each side of a 95% interval


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval, in the unit of what was averaged."""

    value: float
    low: float
    high: float


def bootstrap_mean(values) -> Interval:
    """Mean of one value per problem, with the 95% percentile interval over resampled problems.

    Problems are the unit: samples of one problem are averaged before they come here.
    Repeatable: the draws depend on the values alone. Raises ValueError for no values.
    """
    values = np.sort(np.asarray(values, dtype=np.float64))
    if values.size == 0:
        raise ValueError("bootstrap_mean needs at least one value")
    generator, n = rng("bootstrap", values.size, values.sum()), values.size
    means = np.concatenate(
        [values[generator.integers(n, size=(500, n))].mean(1) for _ in range(DRAWS // 500)]
    )
    low, high = np.quantile(means, [TAIL, 1 - TAIL])
    return Interval(float(values.mean()), float(low), float(high))


def bootstrap_accuracy(scores) -> Interval:
    """`bootstrap_mean` of scores in 0..1. Where all are wrong, or all right, resamples have no
    spread and the interval would claim certainty: the exact (Clopper-Pearson) bound stands in.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.size and (scores == 0).all():
        return Interval(0.0, 0.0, 1 - TAIL ** (1 / scores.size))
    if scores.size and (scores == 1).all():
        return Interval(1.0, TAIL ** (1 / scores.size), 1.0)
    return bootstrap_mean(scores)


def paired_difference(a: dict[str, float], b: dict[str, float]) -> tuple[Interval, int]:
    """Mean of a - b over the problems that both have (id -> score), with its interval; and how many
    they are.

    Pairing removes the difficulty of the problems from the noise. Where all problems differ by the
    same, resamples have no spread: the interval then reaches as far as the most problems that may
    be otherwise (the exact bound of their share), each to the other end of -1..1.

    Raises ValueError where they share none.
    """
    shared = sorted(a.keys() & b.keys())
    differences = [a[i] - b[i] for i in shared]
    if len(set(differences)) == 1:
        value, others = differences[0], 1 - TAIL ** (1 / len(shared))
        interval = Interval(value, value - others * (1 + value), value + others * (1 - value))
        return interval, len(shared)
    return bootstrap_mean(differences), len(shared)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that one of k samples is right, 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, equation
    1).
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


@dataclass(frozen=True)
class Summary:
    """One cell of the results: a model asked a benchmark in a mode. Shares in 0..1, tokens are
    means.
    """

    mode: str
    model: str
    benchmark: str
    round: int
    problems: int
    samples: int
    accuracy: Interval | None  # of scores in 0..1; None: to be judged
    accuracy_any: float | None  # the same with answers that stand in no closed box
    pass_at_k: float | None  # k = samples; None for one sample, or scores between right and wrong
    reasoning_tokens: float
    response_tokens: float
    total_tokens: Interval
    tokens_per_correct: float | None  # None: nothing was right
    truncated: float  # share of answers that ran into their token limit
    scores: dict[str, float]  # problem id -> mean score of its samples
    scorers: dict[str, int]  # how an answer was found and compared -> answers


def summarise(
    rows: list[ResultRow], *, mode: str, model: str, benchmark: str, round: int
) -> Summary:
    """The cell of one results file's rows (at least one)."""
    problems = defaultdict(list)
    for row in rows:
        problems[row.id].append(row)
    judged = all(row.correct is not None and row.correct_any is not None for row in rows)
    scores = (
        {i: float(np.mean([r.correct for r in rs])) for i, rs in problems.items()} if judged else {}
    )
    samples = min(len(rs) for rs in problems.values())
    right = sum(row.correct for row in rows) if judged else 0
    total = sum(row.n_total_tokens for row in rows)
    return Summary(
        mode=mode,
        model=model,
        benchmark=benchmark,
        round=round,
        problems=len(problems),
        samples=samples,
        accuracy=bootstrap_accuracy(list(scores.values())) if judged else None,
        accuracy_any=_mean_of_problems(problems, "correct_any") if judged else None,
        pass_at_k=_pass_at_k(problems, samples),
        reasoning_tokens=float(np.mean([row.n_reasoning_tokens for row in rows])),
        response_tokens=float(np.mean([row.n_response_tokens for row in rows])),
        total_tokens=bootstrap_mean(
            [np.mean([r.n_total_tokens for r in rs]) for rs in problems.values()]
        ),
        tokens_per_correct=total / right if right else None,
        truncated=float(np.mean([row.finish_reason == "length" for row in rows])),
        scores=scores,
        scorers=dict(Counter(row.scorer for row in rows)),
    )


def _mean_of_problems(problems: dict[str, list[ResultRow]], name: str) -> float:
    return float(np.mean([np.mean([getattr(r, name) for r in rs]) for rs in problems.values()]))


def _pass_at_k(problems: dict[str, list[ResultRow]], k: int) -> float | None:
    if k == 1 or any(row.correct not in (0, 1) for rs in problems.values() for row in rs):
        return None
    return float(
        np.mean(
            [pass_at_k(len(rs), round(sum(r.correct for r in rs)), k) for rs in problems.values()]
        )
    )
