"""Intervals, paired differences and pass@k against textbook values."""

import numpy as np
import pytest

from abscot.common.draws import rng
from abscot.evaluation.statistics import (
    bootstrap_accuracy,
    bootstrap_mean,
    paired_difference,
    pass_at_k,
    summarise,
)
from kit.synthetic_run import result_row


def test_the_interval_of_a_mean_is_the_textbooks():
    scores = [1.0] * 300 + [0.0] * 200
    found, half = bootstrap_accuracy(scores), 1.96 * np.sqrt(0.6 * 0.4 / 500)
    assert found.value == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - half, abs=0.004) and found.high == pytest.approx(
        0.6 + half, abs=0.004
    )
    # neither the order of problems nor chance decides
    assert found == bootstrap_accuracy(scores[::-1])


def test_all_wrong_and_all_right_are_not_certain():
    none, every = (
        bootstrap_accuracy([0.0] * 100),
        bootstrap_accuracy([1.0] * 100),
    )
    # Clopper-Pearson, 0 of 100
    assert (none.low, none.high) == (0, pytest.approx(0.0362, abs=1e-4))
    assert (every.low, every.high) == (pytest.approx(1 - 0.0362, abs=1e-4), 1)


def test_problems_are_resampled_not_samples():
    """Eight equal samples of a problem are one observation: the interval must not shrink by
    sqrt(8).
    """
    rows = [
        result_row(
            id=f"p{i}",
            sample=s,
            correct=float(i % 2),
            n_total_tokens=5,
            n_reasoning_tokens=2,
            n_response_tokens=3,
            scorer="x",
        )
        for i in range(60)
        for s in range(8)
    ]
    cell = summarise(rows, mode="abstract", model="final", benchmark="b", round=1)
    alone = summarise(
        [r for r in rows if r.sample == 0],
        mode="abstract",
        model="final",
        benchmark="b",
        round=1,
    )
    assert cell.accuracy == alone.accuracy and cell.problems == 60 and cell.samples == 8


def test_pairing_removes_the_difficulty_of_the_problems():
    draw = rng("paired")
    hard = draw.random(400) < 0.5
    a = {f"p{i}": float(not h) for i, h in enumerate(hard)}
    b = {**a, **{f"p{i}": 1.0 for i in np.flatnonzero(hard)[:20]}, "only b": 1.0}
    difference, shared = paired_difference(b, a)
    assert shared == 400 and difference.value == pytest.approx(0.05)
    assert difference.low > 0.02  # unpaired, the interval would reach far below 0
    assert bootstrap_mean(list(b.values())).low < bootstrap_mean(list(a.values())).high


def test_a_few_problems_that_all_differ_by_the_same_prove_little():
    """As a sign test has it: 5 of 5 problems may be chance at 95%, 6 of 6 may not; and 300 that do
    not differ at all leave 1.2 points open.
    """

    def difference(problems: int, a: float, b: float):
        scores = [dict.fromkeys(range(problems), value) for value in (a, b)]
        return paired_difference(*scores)[0]

    assert difference(5, 1.0, 0.0).low < 0 < difference(6, 1.0, 0.0).low
    assert difference(6, 0.0, 1.0).high < 0 and difference(6, 0.0, 1.0).low == -1
    same = difference(300, 1.0, 1.0)
    assert (same.value, same.high) == (
        0,
        pytest.approx(0.0122, abs=1e-4),
    ) and same.low == -same.high


def test_pass_at_k_is_the_unbiased_estimate():
    assert pass_at_k(4, 0, 2) == 0 and pass_at_k(4, 3, 2) == 1
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    with pytest.raises(ValueError):
        pass_at_k(4, 1, 5)
