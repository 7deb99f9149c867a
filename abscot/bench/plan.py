"""`bench.py plan`: time, balance, mix and fill of the plan on 600k rows with Dolci-like lengths."""

import argparse
import importlib.util
import time

import numpy as np
import pyarrow as pa

from abscot.bench import tools
from abscot.common.arguments import whole_number
from abscot.common.draws import rng
from abscot.common.log import log
from abscot.model.shape import QWEN3
from abscot.packing.bins import best_fit
from abscot.packing.make_plan import make_plan
from abscot.packing.plan import Plan
from abscot.pipeline.estimate import dolci_like_lengths

MICRO_STEPS = 4  # an optimizer step
TRL_ROWS = 50_000


def run(argv: list[str] = ()) -> dict:
    """Keys: plan_s (one epoch), utilisation_{8,64,256}, random_utilisation_*, mix_cv, random_mix_cv
    (both at 64 ranks), bins_over_bound_16k; on TRL_ROWS rows pack_s, trl_s, trl_bins_over_ours
    (null without TRL).
    """
    parser = argparse.ArgumentParser(prog="bench.py plan", description=__doc__)
    parser.add_argument("--rows", type=whole_number(1), default=600_000)
    parser.add_argument("--seed", type=whole_number(0), default=0)
    args = parser.parse_args(argv)
    lengths = dolci_like_lengths(args.rows, rng("bench", args.seed))
    results = {"rows": args.rows}
    for world_size in (8, 64, 256):
        start = time.perf_counter()
        plan = _plan(lengths, 32_768, args.seed, MICRO_STEPS * world_size)
        seconds = time.perf_counter() - start
        log(f"plan for {world_size} ranks: {seconds:.1f} s, {plan.num_steps:,} steps")
        results |= {
            f"plan_s_{world_size}": seconds,
            f"utilisation_{world_size}": plan.utilisation(world_size),
        }
        dealt = _dealt_at_random(plan, args.seed)
        results[f"random_utilisation_{world_size}"] = dealt.utilisation(world_size)
        results |= {
            f"mix_cv_{world_size}": mix_cv(plan),
            f"random_mix_cv_{world_size}": mix_cv(dealt),
        }
    results["plan_s"] = max(results[f"plan_s_{world_size}"] for world_size in (8, 64, 256))
    results |= {"mix_cv": results["mix_cv_64"], "random_mix_cv": results["random_mix_cv_64"]}
    short = lengths[lengths <= 16_384]
    bound = -(-int(short.sum()) // 16_384)
    results["bins_over_bound_16k"] = (
        _plan(short, 16_384, args.seed, 64 * MICRO_STEPS).num_bins / bound
    )
    results |= _against_trl(short[:TRL_ROWS], 16_384)
    print(
        tools.table(
            f"plan of {args.rows:,} rows", ["", "value"], [[k, v] for k, v in results.items()]
        )
    )
    return results


def _plan(lengths: np.ndarray, capacity: int, seed: int, bins_per_step: int) -> Plan:
    return make_plan(
        lengths,
        lengths * (lengths + 1) // 2,
        lengths,
        seed=seed,
        epochs=1,
        capacity_tokens=capacity,
        global_batch_tokens=bins_per_step * capacity,
        pair_cost=QWEN3["4B"].pair_cost,
    )


def _dealt_at_random(plan: Plan, seed: int) -> Plan:
    """The same bins in random order, as a plan without balance would deal them."""
    order = rng("bench", seed, "deal").permutation(plan.num_bins)
    bins = np.split(plan.rows, plan.bin_starts[1:-1])
    starts = np.concatenate([[0], np.cumsum([len(bins[i]) for i in order])])
    rows = np.concatenate([bins[i] for i in order])
    return Plan(rows, starts, plan.step_starts, plan.epochs, plan.supervised_tokens, plan.sizes)


def mix_cv(plan: Plan) -> float:
    """Standard deviation over mean of the steps' mean row length; whole steps only."""
    starts = plan.bin_starts[plan.step_starts]
    means = np.add.reduceat(plan.sizes.tokens[plan.rows], starts[:-1]) / np.diff(starts)
    return float(means[:-1].std() / means[:-1].mean())


def _against_trl(lengths: np.ndarray, capacity: int) -> dict:
    """TRL's best-fit packing of the same rows. It moves the tokens, ours numbers the rows."""
    start = time.perf_counter()
    _, num_bins = best_fit(lengths, capacity)
    results = {"pack_s": time.perf_counter() - start, "trl_s": None, "trl_bins_over_ours": None}
    if importlib.util.find_spec("trl") is None:
        return results
    import datasets
    from trl.data_utils import pack_dataset

    tokens = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), np.zeros(lengths.sum(), np.int8)
    )
    datasets.disable_progress_bars()
    table = datasets.Dataset(pa.table({"input_ids": tokens}))
    start = time.perf_counter()
    packed = pack_dataset(table, capacity, strategy="bfd")
    return results | {
        "trl_s": time.perf_counter() - start,
        "trl_bins_over_ours": len(packed) / num_bins,
    }
