"""The moves that a plan is made of."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from abscot.packing.bins import (
    best_fit,
    deal,
    even_out,
    level_fit,
    num_strata,
    pack,
    round_bins,
    sums,
)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(50, 90))
@settings(deadline=None)
def test_best_fit_and_pack_are_bin_packings_near_the_bound(lengths, capacity):
    lengths = np.array(lengths)
    for bin_of, num_bins in (
        best_fit(lengths, capacity),
        pack(lengths, capacity, np.random.default_rng(0)),
    ):
        filled = sums(bin_of, lengths)
        assert len(filled) == num_bins and filled.min() > 0 and filled.max() <= capacity
        assert num_bins <= 2 * -(-lengths.sum() // capacity)


def test_best_fit_takes_the_fullest_bin_with_room():
    bin_of, num_bins = best_fit(np.array([7, 3, 6, 4, 5, 5, 8, 2]), 10)
    together = {tuple(np.flatnonzero(bin_of == b)) for b in range(num_bins)}
    assert together == {(0, 1), (2, 3), (4, 5), (6, 7)}


def test_level_fit_levels_or_says_that_it_cannot():
    bin_of = level_fit(np.array([5, 4, 3, 3, 2, 1]), 3, 6)
    assert sums(bin_of, np.array([5, 4, 3, 3, 2, 1])).tolist() == [6, 6, 6]
    assert level_fit(np.array([4, 4, 4]), 2, 6) is None


def test_deal_gives_every_step_the_same_number_of_bins_of_every_cost_level():
    generator = np.random.default_rng(0)
    costs = generator.permutation(800)
    step_of = deal(
        costs, generator.integers(1, 9, 800), generator.integers(1, 9, 800), 8, generator
    )
    levels = costs // 200
    counts = np.zeros((100, 4), int)
    np.add.at(counts, (step_of, levels), 1)
    assert (counts == 2).all()


def test_even_out_moves_the_shortest_rows_and_opens_a_bin_where_none_has_room():
    lengths = np.array([9, 9, 2, 1, 9, 9])
    bin_of, step_of_bin = even_out(
        lengths, np.array([0, 1, 0, 1, 2, 2]), np.array([0, 0, 1]), 3, 18
    )
    steps = step_of_bin[bin_of]
    assert np.bincount(steps).tolist() == [3, 3]
    assert steps[3] == 1 and bin_of[3] != bin_of[4] and sums(bin_of, lengths).max() <= 18


def test_bins_per_step_suit_common_world_sizes():
    assert [round_bins(n) for n in (1, 2, 3, 5, 9, 16, 17, 33, 70, 1000)] == [
        1,
        2,
        4,
        8,
        16,
        16,
        24,
        40,
        80,
        1024,
    ]
    assert [num_strata(n) for n in (1, 2, 8, 32, 33, 40, 48, 1024)] == [1, 2, 4, 4, 4, 5, 6, 4]
