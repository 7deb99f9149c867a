"""The codes of the CoTs' steps: what the codebook and the grounded trace sets count."""

from collections.abc import Iterator

from abscot.common.table import Table
from abscot.generation.codebook import TOP_CODE_SHARE
from abscot.generation.trace_records import GroundedCounts
from abscot.reporting.run_data import RunData

DEAD_SHARE = 0.5


def counts_of(data: RunData) -> dict[str, GroundedCounts]:
    """Of each finished grounded trace set, by its tag."""
    found = {tag: stats.get("grounded") for tag, stats in data.traces.items()}
    return {tag: GroundedCounts(**counts) for tag, counts in found.items() if counts}


def _levels(data: RunData) -> Iterator[tuple[str, int, list[int]]]:
    """(`codebook` or the tag of a set, level, how many states have each code)."""
    for level, of_fit in enumerate(data.codebook.levels if data.codebook else []):
        yield "codebook", level, of_fit.counts
    for tag, counts in counts_of(data).items():
        for level, of_set in enumerate(counts.code_counts):
            yield tag, level, of_set


def warnings(data: RunData) -> list[str]:
    """Codes that are hardly used, where there are as many states as codes, or more."""
    found = []
    for name, level, counts in _levels(data):
        size, states, dead, top = len(counts), sum(counts), counts.count(0), max(counts)
        where = f"{name}, codes of level {level}"
        if states < size:
            continue
        if dead > DEAD_SHARE * size:
            found.append(f"{where}: {dead} of {size} are never used")
        if top > TOP_CODE_SHARE * states:
            found.append(f"{where}: one has {top / states:.0%} of the states")
    return found


def tables(data: RunData) -> list[Table]:
    """How the codes are used, and which steps they are of; none without grounded traces."""
    used = tuple(
        (
            name,
            str(level),
            f"{sum(counts):,}",
            f"{counts.count(0)} of {len(counts)}",
            f"{100 * max(counts) / max(sum(counts), 1):.1f}",
        )
        for name, level, counts in _levels(data)
    )
    steps = tuple(
        (
            tag,
            *(
                f"{n:,}"
                for n in (c.steps, c.blank_steps, c.cut_rows, c.filled_rows, c.rows_without_steps)
            ),
        )
        for tag, c in counts_of(data).items()
    )
    of_codes = ("codes of", "level", "states", "dead codes", "top code %")
    of_steps = ("steps of", "steps", "blank", "cut rows", "filled rows", "rows without steps")
    return [Table(heads, rows) for heads, rows in ((of_codes, used), (of_steps, steps)) if rows]


def note(data: RunData) -> str:
    """Where the codes come from, and what the tables count."""
    meta, fitted = data.codebook, ""
    if meta:
        fitted = (
            f"Layer {meta.layer_number} of {meta.num_layers}, position {meta.position}, "
            f"{meta.codebook_size} codes a level, fitted to {meta.states:,} states of "
            f"{meta.rows:,} rows. "
        )
    return (
        f"{fitted}Level 0 is of a state, each further one of what the codes before it leave. Dead: "
        "of no state. Blank: lines without a letter or digit, part of the step before them. Cut "
        f"rows: of more steps than traces.m_max ({data.recipe.traces.m_max}) has room for, coded "
        f"in runs. Filled rows: of so few that each has further codes, up to traces.m_min "
        f"({data.recipe.traces.m_min}). Rows without steps are coded at their end."
    )
