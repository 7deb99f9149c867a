"""The plan: every row once per epoch, the same batches on every world size, bins that fit, balance
and mix.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abscot.common.errors import UserError
from abscot.method.lineage import Training
from abscot.method.phases import PHASES
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
from abscot.packing.make_plan import make_plan
from abscot.packing.phase_plan import kept_plan
from abscot.packing.plan import Plan, rows_digest
from abscot.pipeline.estimate import dolci_like_lengths
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run

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


def test_a_kept_plan_is_read_again_unless_it_was_made_from_something_else(tmp_path):
    lengths = np.random.default_rng(0).integers(1, CAPACITY, 300)
    path, calls = tmp_path / "plans" / "pi1_phaseA.npz", []

    def plan(seed: int) -> Plan:
        def make() -> Plan:
            calls.append(seed)
            return make_plan(
                lengths,
                lengths,
                lengths,
                seed=seed,
                epochs=1,
                capacity_tokens=CAPACITY,
                global_batch_examples=16,
            )

        return kept_plan(path, {"seed": seed}, make)

    made, read = plan(0), plan(0)
    assert calls == [0] and read.hash == made.hash
    for world in (1, 3):
        both = zip(made.step(3).micro_steps(world), read.step(3).micro_steps(world), strict=True)
        assert all(
            np.array_equal(a, b) for ours, theirs in both for a, b in zip(ours, theirs, strict=True)
        )
    assert plan(1).hash != made.hash and calls == [0, 1] and Plan.load(path)[0].hash == plan(1).hash


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
    assert (
        len(plan.step(0).bins) == examples // 16
    )  # no more micro-steps on one rank than the capacity asks for
    for world in (1, 2, 4, 8):
        assert plan.utilisation(world) > 0.98
        assert all(rows is not None for ranks in plan.step(0).micro_steps(world) for rows in ranks)


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


def test_partition_covers_the_data_once_and_reuse_gives_all_of_it():
    recipe = load_recipe(None, ["staging=partition", "rounds=3"])
    phases = [(PHASES[name], round_) for round_ in (1, 2, 3) for name in "AB"]
    parts = [Training(recipe, Run.of(recipe), phase, round_).rows(1000) for phase, round_ in phases]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert {len(part) for part in parts} == {166, 167}
    assert len(Training(recipe, Run.of(recipe), PHASES["sft_cot"], 1).rows(1000)) == 1000
    reuse = load_recipe(None, ["staging=reuse"])
    assert len(Training(reuse, Run.of(reuse), PHASES["B"], 2).rows(1000)) == 1000


def test_the_digest_of_ranks_adds_up_and_tells_sets_of_rows_apart():
    rows = np.random.default_rng(0).permutation(5000)
    parts = np.array([rows_digest(part) for part in np.array_split(rows, 7)])
    assert int(parts.sum()) == rows_digest(rows[::-1])
    assert rows_digest(rows[:-1]) != rows_digest(rows) != rows_digest(np.append(rows[:-1], 5000))
    assert rows_digest(np.array([1, 1])) != rows_digest(np.array([1]))
