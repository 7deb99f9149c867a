"""How long the rows of a recipe are: counted in the shards, given in a file, or assumed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abscot.common.disk import one_line
from abscot.common.draws import rng
from abscot.common.errors import UserError
from abscot.common.files import is_done
from abscot.data.prepare_job import read_rejected
from abscot.data.shards import ShardStore
from abscot.method.sequence import limit_tokens
from abscot.pipeline import estimate
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

PERCENTILES = (0, 10, 25, 50, 75, 90, 99, 100)
MOST_TOKENS = 10**9  # of a part of a row
# Of a source that nobody has read yet: as many as the paper uses, where it is used whole; where
# rows are drawn, as many as Dolci-Think-SFT-7B has.
UNKNOWN_ROWS, UNKNOWN_DRAWN_FROM = 600_000, 2_270_000


@dataclass(frozen=True)
class Lengths:
    """Token counts of the rows, int64 [rows] each, and where they come from."""

    prompt: np.ndarray
    cot: np.ndarray
    answer: np.ndarray
    origin: str
    read: int
    truncated: int
    rejected: dict[str, int]  # reason -> rows
    lost_tokens: dict[str, int]  # reason -> tokens, where they were counted
    store: ShardStore | None = None


def lengths_of(recipe: Recipe, run: Run, file: Path | None) -> Lengths:
    """From `file` (a line per row: prompt, CoT and answer tokens), from the shards, or assumed."""
    if file is None and is_done(run.shards):
        return _prepared_lengths(run)
    if file is not None:
        prompt, cot, answer = _read_lengths(file)
        origin = f"{file}"
    elif recipe.data.source == "world":
        swaps = recipe.world.swaps  # its rows are about this long
        tokens = (18 + 9 * swaps, 13 * swaps, 5)
        prompt, cot, answer = (np.full(recipe.world.rows, n) for n in tokens)
        origin = "assumed (not prepared yet)"
    else:
        drawn = recipe.data.rows
        rows = max(drawn, UNKNOWN_DRAWN_FROM) if drawn else UNKNOWN_ROWS
        total = estimate.dolci_like_lengths(rows, rng("preflight", recipe.seed))
        prompt, answer = np.minimum(200, total // 3), np.minimum(600, total // 3)
        cot = total - prompt - answer
        origin = f"assumed: {rows:,} rows with the lengths of Dolci-Think-SFT-7B (not prepared yet)"
    return _drawn(recipe, prompt, cot, answer, origin)


def _drawn(
    recipe: Recipe, prompt: np.ndarray, cot: np.ndarray, answer: np.ndarray, origin: str
) -> Lengths:
    """Of rows in the order of the draw: the first data.rows that fit, or whose CoT is cut."""
    limit = limit_tokens(recipe)
    fits = prompt + cot + answer <= limit
    is_cut = ~fits & (prompt + answer < limit) & (recipe.data.long_rows != "drop")
    fits |= is_cut
    drawn = np.flatnonzero(fits)[: recipe.data.rows]
    end = drawn[-1] + 1 if len(drawn) == recipe.data.rows else len(fits)
    prompt, cot, answer, fits, is_cut = (x[:end] for x in (prompt, cot, answer, fits, is_cut))
    total = prompt + cot + answer
    cot = np.where(is_cut, limit - prompt - answer, cot)
    if not fits.any():
        raise UserError(
            f"train.capacity_tokens: {recipe.train.capacity_tokens} holds none of the rows "
            f"({origin})"
        )
    lost = int((~fits).sum())
    return Lengths(
        prompt[fits],
        cot[fits],
        answer[fits],
        origin,
        len(total),
        int(is_cut.sum()),
        {"too_long": lost} if lost else {},
        {"too_long": int(total[~fits].sum())} if lost else {},
    )


def _prepared_lengths(run: Run) -> Lengths:
    store = ShardStore(run.shards)
    counts, lost = store.manifest.counts, {}
    if counts["rejected"].get("too_long"):
        rejected = read_rejected(run.shards / "rejected.jsonl")
        lost["too_long"] = sum(line.tokens or 0 for line in rejected if line.reason == "too_long")
    tokens = {name: values.astype(np.int64) for name, values in store.lengths().items()}
    return Lengths(
        **tokens,
        origin=f"{run.shards}",
        read=counts["read"],
        truncated=counts["truncated"],
        rejected=counts["rejected"],
        lost_tokens=lost,
        store=store,
    )


def _read_lengths(file: Path) -> np.ndarray:
    """int64 [3, rows]. Raises UserError with the file and what was expected."""
    try:
        if not file.is_file() or not file.stat().st_size:  # to read a pipe would be to wait
            raise ValueError("no such file, or an empty one")
        table = np.loadtxt(file, delimiter=",", dtype=np.int64, ndmin=2, comments=None)
        if table.shape[1] != 3 or not len(table) or not _may_be_tokens(table):
            raise ValueError(f"{table.shape[1]} columns, or a number that cannot be")
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{file}: expected a line per row, prompt,cot,answer tokens, e.g. 120,20000,600 "
            f"({one_line(error)})"
        ) from None
    return table.T


def _may_be_tokens(table: np.ndarray) -> bool:
    return bool(table.min() >= 0 and table.max() <= MOST_TOKENS and table.sum(1).all())


def describe(lengths: Lengths) -> dict:
    columns = {"prompt": lengths.prompt, "cot": lengths.cot, "answer": lengths.answer}
    columns["total"] = sum(columns.values())
    percentiles = {
        name: {
            **{f"p{p}": int(np.percentile(v, p, method="nearest")) for p in PERCENTILES},
            "sum": int(v.sum()),
        }
        for name, v in columns.items()
    }
    return {
        "origin": lengths.origin,
        "read": lengths.read,
        "kept": len(lengths.prompt),
        "truncated": lengths.truncated,
        "rejected": lengths.rejected,
        "lost_tokens": lengths.lost_tokens,
        "lengths": percentiles,
    }
