"""Sets of hidden pairs: none, the bottleneck, and others that causal calls can express."""

from abscot.method.phases import BOTTLENECK, NOTHING_HIDDEN

HIDDEN = (
    NOTHING_HIDDEN,
    BOTTLENECK,
    frozenset({("Z", "C")}),
    frozenset({("Z", "C"), ("Y", "C")}),
    frozenset({("C", "X"), ("Y", "C"), ("Y", "Z")}),
)
