"""A plan's steps on any number of ranks, and the digest of rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from abscot.packing.make_plan import make_plan
from abscot.packing.plan import Plan, rows_digest
from kit.plans import CAPACITY, plans, steps_of


@given(plans(), st.sampled_from([1, 2, 4, 8, 64]))
@settings(max_examples=60, deadline=None)
def test_a_step_has_the_same_rows_on_every_world_size(made, world):
    arguments, plan = made
    for step in steps_of(plan):
        micro = step.micro_steps(world)
        bins = [rows for ranks in micro for rows in ranks if rows is not None]
        assert all(len(ranks) == world for ranks in micro)
        assert len(micro) == -(-len(step.bins) // world)
        assert all(arguments["lengths_tokens"][rows].sum() <= CAPACITY for rows in bins)
        assert sorted(np.concatenate(bins).tolist()) == sorted(step.rows.tolist())
        if len(step.bins) % world == 0:
            assert all(np.array_equal(a, b) for a, b in zip(bins, step.bins, strict=True))


def test_the_most_expensive_bin_is_the_one_with_the_longest_document_where_attention_dominates():
    lengths = np.array([5] * 60 + [60])
    plan = make_plan(
        lengths,
        lengths**2,
        lengths,
        seed=0,
        epochs=1,
        capacity_tokens=64,
        global_batch_examples=8,
        pair_cost=1.0,
    )
    rows = plan.most_expensive_bin()
    assert 60 in rows and plan.sizes.costs[rows].sum() == plan.bin_costs().max()
    assert plan.sizes.work(rows, 1.0) == (lengths[rows].sum(), (lengths[rows] ** 2).sum())


@given(plans())
@settings(max_examples=60, deadline=None)
def test_every_plan_is_read_as_it_was_saved(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("plans") / "a.npz"
    made[1].save(path, "key")
    plan, key = Plan.load(path)
    assert (plan.hash, key) == (made[1].hash, "key")
    assert np.array_equal(plan.sizes.costs, made[1].sizes.costs)


def test_the_digest_of_ranks_adds_up_and_tells_sets_of_rows_apart():
    rows = np.random.default_rng(0).permutation(5000)
    parts = np.array([rows_digest(part) for part in np.array_split(rows, 7)])
    assert int(parts.sum()) == rows_digest(rows[::-1])
    assert rows_digest(rows[:-1]) != rows_digest(rows) != rows_digest(np.append(rows[:-1], 5000))
    assert rows_digest(np.array([1, 1])) != rows_digest(np.array([1]))
