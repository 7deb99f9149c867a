"""Generates the teacher traces that one phase of one round trains on, with their collapse
statistics.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common.arguments import whole_number
from abscot.common.errors import UserError
from abscot.method.phases import loop
from abscot.recipe.schema import Recipe


def make_parser() -> argparse.ArgumentParser:
    parser = cli.recipe_parser(
        __doc__
        + "\n\nWhere they come from is the schedule's (abscot/method/schedules.py): random draws,"
        "\ncodes of the CoT's steps, or a model, by vLLM."
        "\nKilled and started again it goes on where it was, and makes the same traces. Shards may"
        "\nrun anywhere at the same time. Traces made elsewhere are imported: JSONL with `trace`"
        "\n(ids in the published order, or tokens) and the `id` or `prompt` of its row."
    )
    add = parser.add_argument
    add("--round", type=whole_number(1), required=True, metavar="R")
    names = [phase.name for phase in loop() if phase.trace_source == "model"]
    add("--phase", choices=names, required=True)
    add("--shard", type=whole_number(0), metavar="I", help="only shard I (from 0) of --of N")
    add(
        "--of",
        type=whole_number(1),
        metavar="N",
        help="number of shards (default: traces.shards; null: the engines that the GPUs here hold)",
    )
    add(
        "--import",
        dest="pattern",
        metavar="FILE",
        help="no generation: the traces of this JSONL file or glob (.gz, .zst)",
    )
    add(
        "--rows",
        metavar="FILE",
        help="the data file (JSONL with id or prompt) whose rows the imported lines follow, where "
        "they do not name their rows",
    )
    add("--export", metavar="FILE", help="no generation: write the traces that are there as JSONL")
    return parser


def main() -> int:
    args = make_parser().parse_args()
    recipe = cli.recipe_of(args)
    if (args.pattern, args.rows, args.export) != (None, None, None):
        return exchange(args, recipe)
    of = args.of or recipe.traces.shards
    if args.shard is not None and of is None:
        raise UserError(f"--shard {args.shard}: expected --of N too, how many shards there are")
    if args.shard is not None and args.shard >= of:
        raise UserError(f"--shard {args.shard}: expected 0 to {of - 1}, the shards being --of {of}")

    from abscot.common.files import is_done
    from abscot.generation.trace_jobs import generate, open_job
    from abscot.method.lineage import training_of
    from abscot.method.schedules import GROUNDED
    from abscot.pipeline.fan_out import (
        chunks_of,
        engines_here,
        generate_on_this_machine,
        processes_for_grounding,
    )
    from abscot.pipeline.lease import exclusive
    from abscot.recipe.run import Run, claim

    training = training_of(recipe, Run.of(recipe), args.phase, args.round)
    if is_done(training.traces):
        print(f"{training.traces}: already done")
        return 0
    job = open_job(training)
    claim(recipe)
    grounded, of = training.trace_source == GROUNDED, of or engines_here(recipe)
    if grounded and args.shard is None and args.of is None:
        of = processes_for_grounding(of)
    if args.shard is None and of > 1 and job.maker is not None:
        return generate_on_this_machine(
            [sys.executable, *sys.argv],
            min(of, len(job.chunks())),
            1 if grounded else recipe.inference.tensor_parallel,
        )
    shard, of = (0, 1) if args.shard is None else (args.shard, of)
    with exclusive(training.run.root, *chunks_of(job, shard, of)):
        published = generate(job, shard, of)
    print(f"{job.final}: {'done' if published else 'waits for the other shards'}")
    return 0


def exchange(args: argparse.Namespace, recipe: Recipe) -> int:
    """--import and --export."""
    one = (args.pattern is None) != (args.export is None)
    if not one or args.shard is not None or args.of is not None:
        raise UserError("expected one of --import FILE and --export FILE, without --shard and --of")
    if args.rows is not None and args.pattern is None:
        raise UserError("--rows says which rows the lines of --import FILE follow; give that too")

    from abscot.generation.trace_exchange import export_traces, import_traces
    from abscot.generation.trace_jobs import open_job
    from abscot.method.lineage import training_of
    from abscot.pipeline.fan_out import chunks_of
    from abscot.pipeline.lease import exclusive
    from abscot.recipe.run import Run, claim

    run = Run.of(recipe)
    job = open_job(training_of(recipe, run, args.phase, args.round), imported=True)
    if args.export is not None:
        export_traces(job, Path(args.export))
        print(f"{args.export}: the traces of {job.tag}")
    else:
        claim(recipe)
        with exclusive(run.root, *chunks_of(job, 0, 1)):
            import_traces(job, args.pattern, args.rows)
        print(f"{job.final}: done")
    return 0


if __name__ == "__main__":
    cli.run(main)
