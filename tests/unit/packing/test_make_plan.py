"""Plans: every row once per epoch, exact budgets, busy ranks."""

import numpy as np
import pytest
from hypothesis import given, settings

from abscot.common.errors import UserError
from abscot.packing.make_plan import make_plan
from abscot.pipeline.estimate import dolci_like_lengths
from kit.plans import CAPACITY, plans, steps_of


@given(plans())
@settings(max_examples=60, deadline=None)
def test_each_epoch_trains_every_row_once(made):
    arguments, plan = made
    for epoch in range(arguments["epochs"]):
        rows = np.concatenate([step.rows for step in steps_of(plan) if step.epoch == epoch])
        assert sorted(rows.tolist()) == list(range(len(arguments["lengths_tokens"])))
    assert (np.diff(plan.epochs) >= 0).all()


@given(plans())
@settings(max_examples=60, deadline=None)
def test_bins_fit_and_steps_count_their_rows_and_supervised_tokens(made):
    arguments, plan = made
    lengths, supervised = arguments["lengths_tokens"], arguments["supervised_tokens"]
    for step in steps_of(plan):
        assert all(len(rows) and lengths[rows].sum() <= CAPACITY for rows in step.bins)
        assert step.examples == len(step.rows)
        assert step.supervised_tokens == supervised[step.rows].sum()


@given(plans())
@settings(max_examples=60, deadline=None)
def test_an_example_budget_is_kept_exactly(made):
    arguments, plan = made
    budget = arguments.get("global_batch_examples")
    if budget:
        for epoch in range(arguments["epochs"]):
            sizes = [step.examples for step in steps_of(plan) if step.epoch == epoch]
            assert all(size == budget for size in sizes[:-1])
            assert sizes[-1] == (len(arguments["lengths_tokens"]) - 1) % budget + 1


@given(plans())
@settings(max_examples=60, deadline=None)
def test_a_token_budget_is_a_number_of_bins(made):
    arguments, plan = made
    budget = arguments.get("global_batch_tokens")
    if budget:
        for epoch in range(arguments["epochs"]):
            sizes = [len(step.bins) for step in steps_of(plan) if step.epoch == epoch]
            assert all(size == max(1, budget // CAPACITY) for size in sizes[:-1])
            assert 0 < sizes[-1] <= max(1, budget // CAPACITY)


def test_the_plan_is_pure_and_epochs_rounds_phases_and_seeds_differ():
    lengths = np.random.default_rng(0).integers(1, CAPACITY, 300)

    def plan(**changes):
        options = dict(
            seed=0,
            epochs=2,
            capacity_tokens=CAPACITY,
            global_batch_examples=16,
            round_=1,
            phase="A",
        )
        return make_plan(lengths, lengths, lengths, **{**options, **changes})

    first = plan()
    assert first.hash == plan().hash
    half = first.num_steps // 2
    assert [s.rows.tolist() for s in steps_of(first)[:half]] != [
        s.rows.tolist() for s in steps_of(first)[half:]
    ]
    assert len({first.hash, plan(round_=2).hash, plan(phase="B").hash, plan(seed=1).hash}) == 4


def test_the_plan_of_an_input_never_changes():
    """A changed plan would break the resume of every run under way: raise PLAN_VERSION, then this
    hash.
    """
    lengths = 1 + np.arange(500) * 37 % CAPACITY
    options = dict(seed=0, epochs=2, capacity_tokens=CAPACITY, pair_cost=0.01, phase="A")
    plans = [
        make_plan(lengths, lengths**2, lengths, **options, **budget)
        for budget in ({"global_batch_examples": 16}, {"global_batch_tokens": 8 * CAPACITY})
    ]
    assert [plan.hash for plan in plans] == ["1310f89ad51c9b56", "6f7fad3e349e8eef"]


def test_a_row_longer_than_a_bin_is_named():
    lengths = np.array([10, 65, 20])
    with pytest.raises(UserError, match=r"row 1 \(abc\): 65 tokens .* train.capacity_tokens=64"):
        make_plan(
            lengths,
            lengths,
            lengths,
            seed=0,
            epochs=1,
            capacity_tokens=64,
            global_batch_examples=2,
            row_name=lambda row: f"row {row} (abc)",
        )


def test_no_rows_is_the_users_mistake():
    with pytest.raises(UserError, match="no rows"):
        make_plan(
            *[np.zeros(0, int)] * 3, seed=0, epochs=1, capacity_tokens=64, global_batch_examples=2
        )


def test_long_rows_keep_ranks_busy_and_every_steps_mix():
    lengths = dolci_like_lengths(20_000, np.random.default_rng(0))
    options = dict(seed=0, epochs=1, capacity_tokens=32_768, pair_cost=8.2e-5)
    pairs = lengths * (lengths + 1) // 2
    by_tokens = make_plan(lengths, pairs, lengths, global_batch_tokens=32 * 32_768, **options)
    by_examples = make_plan(lengths, pairs, lengths, global_batch_examples=64, **options)
    for plan in (by_tokens, by_examples):
        assert plan.utilisation(8) > 0.99
        means = np.array([lengths[step.rows].mean() for step in steps_of(plan)[:-1]])
        assert means.std() / means.mean() < 0.05  # random rows: 0.07


@pytest.mark.parametrize("examples", [32, 64])
def test_small_steps_leave_no_rank_idle(examples):
    lengths = np.random.default_rng(0).integers(70, 131, 4000)
    plan = make_plan(
        lengths,
        lengths**2 // 2,
        lengths,
        seed=0,
        epochs=1,
        capacity_tokens=2048,
        global_batch_examples=examples,
        pair_cost=1e-3,
    )
    # no more micro-steps on one rank than the capacity asks for
    assert len(plan.step(0).bins) == examples // 16
    for world in (1, 2, 4, 8):
        assert plan.utilisation(world) > 0.98
        assert all(rows is not None for ranks in plan.step(0).micro_steps(world) for rows in ranks)
