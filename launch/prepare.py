"""Tokenises the training data into shards/: streamed, filtered, counted; by one process or by MPI
ranks.

  python launch/prepare.py                                                     the tiny recipe
  mpiexec -n 8 python launch/prepare.py --recipe launch/recipes/qwen3-4b-full-600k.yaml
  python launch/prepare.py --set name=mine --set data.source='data/*.jsonl.gz' --set data.rows=5000

Every number of ranks writes the same shards. A killed run goes on when the same command is given
again.
"""

import contextlib
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common import files
from abscot.data.mpi import Ranks
from abscot.pipeline.launchers import mpi_launch
from abscot.pipeline.lease import claimed
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


def main() -> None:
    args = cli.recipe_parser(__doc__).parse_args()
    ranks = Ranks(*mpi_launch())
    recipe = cli.recipe_of(args)
    os.environ.setdefault("RAYON_NUM_THREADS", str(ranks.cores()))  # of the tokenizer
    with contextlib.ExitStack() as held:
        run = ranks.first(lambda: held.enter_context(claimed(recipe)))
        make_shards(recipe, run, ranks)


def make_shards(recipe: Recipe, run: Run, ranks: Ranks) -> None:
    if ranks.first(lambda: files.is_done(run.shards)):
        ranks.first(lambda: check(run))
        return

    from abscot.data.prepare import prepare
    from abscot.method.vocab import load_tokenizer

    ranks.first(lambda: files.read_done(run.base))
    tokenizer = load_tokenizer(run.base, recipe.model.trust_remote_code)
    store = prepare(
        recipe, run, tokenizer, ranks.first(lambda: evaluation_problems(recipe, run)), ranks
    )
    if ranks.rank == 0:
        print(summary(store, recipe.data.rows))


def evaluation_problems(recipe: Recipe, run: Run) -> list[str]:
    """All problems of the recipe's benchmarks; the world keeps its own held-out problems apart."""
    from abscot.evaluation import benchmarks

    if not recipe.data.decontaminate:
        return []
    whole = replace(recipe, eval=replace(recipe.eval, limit=None))
    names = [name for name in recipe.eval.benchmarks if name != "world"]
    return [problem.problem for name in names for problem in benchmarks.load(name, whole, run)]


def check(run: Run) -> None:
    from abscot.data.shards import ShardStore

    store = ShardStore(run.shards)
    store.verify()
    # of a kill right after the publishing
    shutil.rmtree(run.shards.with_name("shards.work"), ignore_errors=True)
    print(f"{run.shards}: done, {len(store):,} rows, every checksum is right, hash {store.hash}")


def summary(store, wanted: int | None) -> str:
    """wanted: data.rows; rows that are too long are then passed over, and others drawn instead."""
    counts = store.manifest.counts
    kept, rejected = counts["kept"], dict(counts["rejected"])
    lines = [f"{store.directory}: {kept:,} of {counts['read']:,} rows, hash {store.hash}"]
    if wanted is not None and kept < wanted:
        lines.append(f"  WARNING: data.rows={wanted}, but no more than {kept:,} can be trained on")
    if wanted is not None:
        lines.append(f"  passed over: {rejected.pop('too_long', 0):,} too long")
    lines += [f"  not used: {n:>10,}  {reason}" for reason, n in rejected.items()]
    if counts["truncated"]:
        lines.append(f"  CoT cut:  {counts['truncated']:>10,}")
    lines.append(f"  {'tokens':8}" + "".join(f"{p:>9}" for p in store.manifest.lengths["total"]))
    for part, values in store.manifest.lengths.items():
        lines.append(f"  {part:8}" + "".join(f" {v:>8,}" for v in values.values()))
    return "\n".join(lines)


cli.run(main)
