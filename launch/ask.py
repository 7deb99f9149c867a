"""Asks a model that has the abstract tokens: its trace and its answer, token by token, with their
number and the seconds; beside them, if asked for, another model's answer in words.

  python launch/ask.py --model runs/tiny-cpu/final "..."    one question
  python launch/ask.py --model runs/tiny-cpu/final --beside base --thinking    questions as you type

Any directory, adapter or hub id will do. A model inside a run is asked by the run's recipe; one
from elsewhere by the defaults, its generation_config.json and its own window, unless --recipe says
more. How traces and answers are decoded: --set eval.m_max=.., eval.trace_temperature=.. Of
questions from a pipe each line is one. Nothing is written, but what an adapter is merged into.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli


def make_parser() -> argparse.ArgumentParser:
    parser = cli.recipe_parser(__doc__)
    add = parser.add_argument
    add("question", nargs="?", help="without it, questions are read until the end of input")
    add(
        "--model",
        metavar="NAME|PATH|HUB_ID",
        default="final",
        help="base, round1, .., final or another model of the recipe's run, or any other model or "
        "adapter, by its directory or hub id (default: final)",
    )
    add(
        "--beside",
        metavar="NAME|PATH|HUB_ID",
        help="also ask this model, which answers in words; on a GPU each has half the memory",
    )
    add("--thinking", action="store_true", help="the model beside thinks before it answers")
    add("--system", metavar="TEXT", help="the system prompt (data.system_prompt); '' for none")
    add("--json", action="store_true", help="one line of JSON per question")
    return parser


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    if args.thinking and args.beside is None:
        parser.error("argument --thinking: it is the model of --beside that thinks; give that too")
    if args.question is not None and not args.question.strip():
        parser.error("argument question: expected a question, found empty text")
    overrides = list(args.set)
    if args.system is not None:
        overrides.append(
            f"data.system_prompt={json.dumps(args.system or None, ensure_ascii=False)}"
        )

    from abscot.evaluation.ask import Conversation, converse
    from abscot.evaluation.ask_model import Rules

    rules = Rules.of(args.model, args.recipe, overrides)
    names = [args.model] if args.beside is None else [args.model, args.beside]
    return converse(Conversation(rules, names, args.thinking, args.json), args.question)


if __name__ == "__main__":
    cli.run(main)
