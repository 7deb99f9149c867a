"""What a training phase is: its segments, its mask rule, what it supervises and where its traces
come from.
"""

from dataclasses import dataclass

SEGMENT_PAD, SEGMENT_X, SEGMENT_C, SEGMENT_Z, SEGMENT_Y = 0, 1, 2, 3, 4
SEGMENT_OF = {"X": SEGMENT_X, "C": SEGMENT_C, "Z": SEGMENT_Z, "Y": SEGMENT_Y}


@dataclass(frozen=True)
class Phase:
    """One row of the phase table.

    segments: the training sequence in order, e.g. "XCZY"; supervised: the segments that carry loss.
    bottleneck: queries in Y never see keys in C (paper section 3.1). trace_source: "model" reads
    this phase's trace set, "pause" fills Z with pause tokens, None has no Z. iterated: part of the
    rounds (A, B); the others are the paper's baselines, trained once from the base.
    """

    name: str
    segments: str
    supervised: str
    bottleneck: bool
    trace_source: str | None
    iterated: bool
    about: str

    @property
    def sees_cot(self) -> bool:
        return "C" in self.segments

    def tag(self, round_: int) -> str:
        """Name of this phase's files: `pi2_phaseA`, or the plain name of a baseline."""
        return f"pi{round_}_phase{self.name}" if self.iterated else self.name


PHASES = {
    phase.name: phase
    for phase in (
        Phase("A", "XCZY", "ZY", True, "model", True, "bottlenecked SFT: C -> H_Z -> Y"),
        Phase(
            "B", "XZY", "ZY", False, "model", True, "self-distillation: the trace without the CoT"
        ),
        Phase("sft_cot", "XCY", "CY", False, None, False, "baseline: verbal CoT"),
        Phase("sft_no_cot", "XY", "Y", False, None, False, "baseline: the answer alone"),
        Phase(
            "pause", "XZY", "Y", False, "pause", False, "baseline: m pause tokens, then the answer"
        ),
    )
}
ITERATED = tuple(name for name, phase in PHASES.items() if phase.iterated)
