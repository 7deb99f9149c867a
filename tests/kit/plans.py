"""Plans of random rows."""

import numpy as np
from hypothesis import strategies as st

from abscot.packing.make_plan import make_plan
from abscot.packing.plan import Plan

CAPACITY = 64


@st.composite
def plans(draw):
    """(arguments of make_plan, its plan), rows of 1 to CAPACITY tokens."""
    lengths = np.array(draw(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=120)))
    budget = draw(
        st.one_of(
            st.builds(lambda n: {"global_batch_examples": n}, st.integers(1, 40)),
            st.builds(lambda n: {"global_batch_tokens": n}, st.integers(1, 12 * CAPACITY)),
        )
    )
    supervised = np.array([draw(st.integers(1, int(n))) for n in lengths])
    arguments = dict(
        lengths_tokens=lengths,
        attention_pairs=lengths * (lengths + 1) // 2,
        supervised_tokens=supervised,
        seed=draw(st.integers(0, 3)),
        epochs=draw(st.integers(1, 3)),
        capacity_tokens=CAPACITY,
        pair_cost=draw(st.sampled_from([0.0, 0.01, 1.0])),
        **budget,
    )
    return arguments, make_plan(**arguments)


def steps_of(plan: Plan):
    return [plan.step(index) for index in range(plan.num_steps)]
