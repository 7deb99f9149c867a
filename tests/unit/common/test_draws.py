"""Random draws depend on their key alone."""

import numpy as np

from abscot.common.draws import keyed_seed, rng


def test_draws_depend_on_their_key_alone():
    first = rng(0, 1, "A", "row-7").integers(0, 1 << 30, 4)
    assert np.array_equal(first, rng(0, 1, "A", "row-7").integers(0, 1 << 30, 4))
    assert not np.array_equal(first, rng(0, 1, "A", "row-8").integers(0, 1 << 30, 4))
    assert rng("ab", "c").random() != rng("a", "bc").random()
    assert 0 <= keyed_seed(0, 1) < 2**31
