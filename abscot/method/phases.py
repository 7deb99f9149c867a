"""What a training phase is: its segments, which of them are hidden from which, what it supervises,
where its traces come from, and how its model is asked. A phase is a row of a table; which model it
starts from follows from the order of the rows (lineage.py).
"""

from dataclasses import dataclass

SEGMENT_PAD, SEGMENT_X, SEGMENT_C, SEGMENT_Z, SEGMENT_Y = 0, 1, 2, 3, 4
SEGMENT_OF = {"X": SEGMENT_X, "C": SEGMENT_C, "Z": SEGMENT_Z, "Y": SEGMENT_Y}

HiddenPairs = frozenset[tuple[str, str]]  # (queries of this segment, never see keys of that one)
NOTHING_HIDDEN: HiddenPairs = frozenset()
BOTTLENECK: HiddenPairs = frozenset({("Y", "C")})  # paper section 3.1: C -> H_Z -> Y


@dataclass(frozen=True)
class Phase:
    """One row of the phase table.

    segments: the training sequence in order, e.g. "XCZY"; supervised: the segments that carry loss.
    trace_source: "model" reads this phase's trace set, "pause" fills Z with pause tokens, None has
    no Z. iterated: part of the rounds, in the order of the table; the others are the paper's
    baselines, trained once from the base. asked_in: the mode in which evaluation asks its model;
    None: in the recipe's modes.

    Raises ValueError for a row that contradicts itself.
    """

    name: str
    segments: str
    supervised: str
    trace_source: str | None
    about: str
    hidden: HiddenPairs = NOTHING_HIDDEN
    iterated: bool = False
    asked_in: str | None = None
    label: str = ""  # of a baseline, in tables

    def __post_init__(self):
        order = list(self.segments)
        if order != sorted(set(order), key="XCZY".index) or not set(self.supervised) <= set(order):
            raise ValueError(
                f"phase {self.name}: segments {self.segments}, supervised {self.supervised}: "
                "expected some of X, C, Z, Y in this order, and supervised ones among them"
            )
        if ("Z" in order) is (self.trace_source is None):
            raise ValueError(f"phase {self.name}: a trace source if and only if it has a Z")
        for query, key in self.hidden:
            if not {query, key} <= set(order) or order.index(key) >= order.index(query):
                raise ValueError(
                    f"phase {self.name}: hidden pair {query}, {key}: causal calls can leave out an "
                    f"earlier segment alone; expected two of {self.segments}, the key's first"
                )

    @property
    def sees_cot(self) -> bool:
        return "C" in self.segments

    @property
    def thinks(self) -> bool:
        """It supervises the CoT, and so writes it as the base does: in the thinking template."""
        return "C" in self.supervised

    def tag(self, round_: int) -> str:
        """Name of this phase's files: `pi2_phaseA`, or the plain name of a baseline."""
        return f"pi{round_}_phase{self.name}" if self.iterated else self.name


PHASES = {
    phase.name: phase
    for phase in (
        Phase(
            name="A",
            segments="XCZY",
            supervised="ZY",
            trace_source="model",
            about="bottlenecked SFT: C -> H_Z -> Y",
            hidden=BOTTLENECK,
            iterated=True,
            asked_in="channel",
        ),
        Phase(
            name="B",
            segments="XZY",
            supervised="ZY",
            trace_source="model",
            about="self-distillation: the trace without the CoT",
            iterated=True,
        ),
        Phase(
            name="sft_no_cot",
            segments="XY",
            supervised="Y",
            trace_source=None,
            about="baseline: the answer alone",
            asked_in="no_cot",
            label="SFT (no CoT)",
        ),
        Phase(
            name="sft_cot",
            segments="XCY",
            supervised="CY",
            trace_source=None,
            about="baseline: verbal CoT",
            asked_in="thinking",
            label="SFT (CoT)",
        ),
        Phase(
            name="pause",
            segments="XZY",
            supervised="Y",
            trace_source="pause",
            about="baseline: m pause tokens, then the answer",
            asked_in="pause",
            label="pause tokens",
        ),
    )
}


def round_and_phase(tag: str) -> tuple[str, str]:
    """(round, phase) of the tag of a phase of a round."""
    round_, _, phase = tag.removeprefix("pi").partition("_phase")
    return round_, phase


def loop() -> list[Phase]:
    """The phases of a round, in order."""
    return [phase for phase in PHASES.values() if phase.iterated]


def baselines() -> list[Phase]:
    return [phase for phase in PHASES.values() if not phase.iterated]
