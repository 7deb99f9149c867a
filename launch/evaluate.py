"""Evaluates the run's models: accuracy and token counts, one result file for each mode, model and
benchmark.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common.arguments import whole_number


def make_parser() -> argparse.ArgumentParser:
    parser = cli.recipe_parser(
        __doc__
        + "\n\nKilled and started again it goes on with the next answer. The results stand in "
        "RUN/results."
    )
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME|PATH|HUB_ID",
        help="base, round1, .., final, a baseline (sft_cot), a phase of a round (pi1_phaseA), a "
        "phase on its way (pi1_phaseA_step100), or all (default: final, or the grid's); or any "
        "other model or adapter, by its directory or hub id",
    )
    add("--mode", action="append", help="instead of the recipe's modes (repeatable)")
    add("--benchmark", action="append", help="instead of the recipe's benchmarks (repeatable)")
    add(
        "--grid",
        metavar="FILE",
        help="models, benchmarks and seeds instead of the above: slurm/grid.yaml",
    )
    add(
        "--cell",
        type=whole_number(0),
        metavar="N",
        help="make the answers of the grid's cell N alone; from 0",
    )
    add("--cells", action="store_true", help="print the grid's cells, and do nothing")
    add(
        "--then-traces",
        action="store_true",
        help="with the same engine, make the traces of the training that starts from this model",
    )
    return parser


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    for option, given in (("--mode", args.mode or []), ("--benchmark", args.benchmark or [])):
        if twice := [name for name in given if given.count(name) > 1]:
            parser.error(f"argument {option}: {twice[0]} is given twice")
    if args.cell is not None and (args.model or args.benchmark or args.then_traces):
        parser.error("argument --cell: the cell says which model and benchmark; leave out the rest")
    recipe = cli.recipe_of(args)

    from abscot.evaluation.evaluate import evaluate
    from abscot.evaluation.grid import Grid
    from abscot.evaluation.jobs import jobs_of
    from abscot.method.lineage import round_models
    from abscot.pipeline.fan_out import answers_of, evaluate_models, evaluate_then_trace
    from abscot.pipeline.lease import exclusive
    from abscot.recipe.run import Run, claim

    run, sample, benchmarks = Run.of(recipe), None, args.benchmark
    models = ["final" if args.model is None else args.model]
    if args.grid or args.cells or args.cell is not None:
        grid = Grid.of(recipe, args.grid)
        if args.cells:
            print("\n".join(f"{number}  {cell}" for number, cell in enumerate(grid.cells())))
            return 0
        recipe.eval.samples, benchmarks = grid.seeds, grid.benchmarks
        models = [args.model] if args.model else grid.models
        if args.cell is not None:
            model, benchmark, sample = grid.cell(args.cell)
            models, benchmarks = [model], [benchmark]
    elif args.model == "all":
        models = [model.name for model in round_models(recipe, run)]
    jobs = {model: jobs_of(recipe, run, model, args.mode, benchmarks) for model in models}
    claim(recipe)
    if len(models) > 1:
        return evaluate_models(jobs, [sys.executable, *sys.argv])
    if args.then_traces:
        evaluate_then_trace(jobs[models[0]])
    else:
        with exclusive(run.root, *answers_of(jobs[models[0]], sample)):
            evaluate(jobs[models[0]], sample=sample)
    return 0


if __name__ == "__main__":
    cli.run(main)
