"""Published numbers: MATH-500 with Qwen3-4B."""

from collections.abc import Iterable
from typing import NamedTuple

from abscot.common.table import Table

BENCHMARK = "math500"
COLUMN = "published"  # of a table whose rows are a run's


class Published(NamedTuple):
    """accuracy in %; tokens: the mean of an answer, its reasoning with it."""

    what: str
    source: str
    accuracy: str
    tokens: str


VERBAL_COT = "verbal CoT of the base: thinking off, up to 8,192 tokens (mode verbal)"
WARMED_UP = "Abstract-CoT, warm-up"
PAPER, REPRODUCTION = "paper", "public reproduction"
VERBAL = (
    Published(VERBAL_COT, PAPER, "83.2", "1087"),
    Published(VERBAL_COT, REPRODUCTION, "84.6", "1045"),
)
WARM_UP = (
    Published(f"{WARMED_UP}: 600k rows, full fine-tune, 3 epochs a phase", PAPER, "86.2", "168"),
    Published(f"{WARMED_UP}: 5k rows, LoRA, 1 epoch a phase", REPRODUCTION, "72.0", "432"),
)
PUBLISHED = Table(
    ("what", "from", "accuracy, %", "mean tokens"),
    tuple(tuple(numbers) for numbers in (*VERBAL, *WARM_UP)),
    2,
)
NOTE = (
    "Published, of MATH-500 with Qwen3-4B, accuracy in % @ mean tokens. Paper (arXiv 2604.22709): "
    "verbal CoT (mode verbal: thinking off) 83.2% with 1087 tokens, Abstract-CoT warm-up 86.2% "
    "with 168 (600k rows, full fine-tune). Public reproduction: verbal CoT 84.6% with 1045, "
    "Abstract-CoT 72.0% with 432 (5k rows, LoRA). Another model, benchmark or mode is not "
    "comparable."
)


def beside(mode: str, model: str, benchmark: str) -> str:
    """What stands beside a run's row: `83.2 @ 1087, 84.6 @ 1045`; "" where nothing belongs."""
    rows = {("verbal", "base"): VERBAL, ("abstract", "final"): WARM_UP}
    numbers = rows.get((mode, model), ()) if benchmark == BENCHMARK else ()
    return ", ".join(f"{each.accuracy} @ {each.tokens}" for each in numbers)


def any_beside(benchmarks: Iterable[str]) -> bool:
    """Whether a table over these benchmarks has a row with published numbers."""
    return BENCHMARK in benchmarks
