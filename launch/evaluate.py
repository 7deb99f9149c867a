"""Evaluates the run's models: accuracy and token counts, one result file for each mode, model and benchmark."""

import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from abscot import cli  # noqa: E402


def main() -> int:
    parser = cli.recipe_parser(
        __doc__ + "\n\nKilled and started again it goes on with the next answer. The results stand in RUN/results."
    )
    parser.add_argument(
        "--model", default="final",
        help="base, round1, .., final, a baseline such as sft_cot, phase A of a round (pi1_phaseA), or all (default: final)",
    )
    parser.add_argument("--mode", action="append", help="instead of the recipe's modes (repeatable)")
    parser.add_argument("--benchmark", action="append", help="instead of the recipe's benchmarks (repeatable)")
    parser.add_argument(
        "--then-traces", action="store_true",
        help="with the same engine, make the next round's phase A traces too (the round's model makes them)",
    )  # fmt: skip
    args = parser.parse_args()
    recipe = cli.recipe_of(args)

    from abscot import evaluate
    from abscot.paths import Run, claim

    run = Run.of(recipe)
    models = evaluate.model_names(recipe) if args.model == "all" else [args.model]
    jobs = {model: evaluate.jobs_of(recipe, run, model, args.mode, args.benchmark) for model in models}
    claim(recipe)
    if args.model == "all":
        return evaluate.evaluate_models(jobs, [sys.executable, *sys.argv])
    (evaluate.evaluate_then_trace if args.then_traces else evaluate.evaluate)(jobs[args.model])
    return 0


if __name__ == "__main__":
    cli.run(main)
