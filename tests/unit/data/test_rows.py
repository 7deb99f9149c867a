"""Long rows: dropped, or cut where the policy says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abscot.common.errors import UserError
from abscot.data.rejected import Rejected
from abscot.data.rows import fit
from abscot.method.sequence import limit_tokens
from abscot.recipe.load import load_recipe
from abscot.recipe.schema import Recipe, TraceConfig, TrainConfig, WorldConfig
from kit.raw_data import row


def test_long_rows_are_dropped_or_lose_the_part_that_the_policy_names():
    long = row(3, [4, 4, 4], 2)
    assert fit(long, 17, "drop") is long
    with pytest.raises(Rejected, match="too_long.*17 tokens, room for 12"):
        fit(long, 12, "drop")
    cut = {side: fit(long, 12, f"truncate_cot_{side}") for side in ("left", "middle", "right")}
    assert cut["left"].cot.tolist() == [5, 6, 7, 8, 9, 10, 11] and cut[
        "left"
    ].cot_steps.tolist() == [3, 4]
    assert cut["middle"].cot.tolist() == [0, 1, 2, 8, 9, 10, 11] and cut[
        "middle"
    ].cot_steps.tolist() == [
        3,
        4,
    ]
    assert cut["right"].cot.tolist() == [0, 1, 2, 3, 4, 5, 6] and cut[
        "right"
    ].cot_steps.tolist() == [4, 3]
    with pytest.raises(Rejected, match="too_long"):
        fit(long, 5, "truncate_cot_left")  # prompt and answer alone fill it


@given(
    st.integers(1, 20),
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.integers(1, 9),
    st.integers(2, 90),
    st.sampled_from(["left", "middle", "right"]),
)
def test_cut_rows_fill_the_limit_exactly(prompt, steps, answer, limit, side):
    whole = row(prompt, steps, answer)
    if prompt + answer >= limit:
        return
    cut = fit(whole, limit, f"truncate_cot_{side}")
    assert prompt + len(cut.cot) + answer == min(limit, prompt + sum(steps) + answer)
    assert cut.cot_steps.sum() == len(cut.cot) and (cut.cot_steps > 0).all()


def test_the_limit_leaves_room_for_the_longest_trace():
    recipe = Recipe(
        world=WorldConfig(), train=TrainConfig(capacity_tokens=200), traces=TraceConfig(m_max=128)
    )
    assert limit_tokens(recipe) == 200 - 130
    with pytest.raises(UserError, match="train.capacity_tokens: expected room for a trace"):
        load_recipe(None, ["train.capacity_tokens=130", "traces.m_max=128"])
