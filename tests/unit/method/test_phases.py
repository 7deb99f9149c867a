"""The table's own checks: a row that contradicts itself is refused when the table is read."""

import pytest

from abscot.method.phases import PHASES, Phase


def row(**changes) -> Phase:
    return Phase(**{**vars(PHASES["A"]), **changes})


@pytest.mark.parametrize("pair", [("Y", "Y"), ("C", "Y"), ("Y", "W")])
def test_a_hidden_pair_that_causal_calls_cannot_express_is_refused(pair):
    with pytest.raises(ValueError, match=f"hidden pair {pair[0]}, {pair[1]}: causal calls"):
        row(hidden=frozenset({pair}))


def test_a_pair_of_segments_that_the_phase_has_not_is_refused():
    with pytest.raises(ValueError, match="expected two of XZY"):
        row(segments="XZY", hidden=frozenset({("Y", "C")}))


@pytest.mark.parametrize(
    "changes", [{"segments": "CXZY"}, {"segments": "XZZY"}, {"supervised": "ZYQ"}]
)
def test_segments_stand_in_order_and_hold_what_is_supervised(changes):
    with pytest.raises(ValueError, match="expected some of X, C, Z, Y in this order"):
        row(hidden=frozenset(), **changes)


@pytest.mark.parametrize(
    "changes",
    [{"trace_source": None}, {"segments": "XY", "supervised": "Y", "hidden": frozenset()}],
)
def test_a_trace_source_goes_with_a_trace(changes):
    with pytest.raises(ValueError, match="a trace source if and only if it has a Z"):
        row(**changes)
