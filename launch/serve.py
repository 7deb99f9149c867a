"""Serves a model over HTTP with vLLM, by the OpenAI API: the answer is `content`, its trace
`reasoning`.

  python launch/serve.py --recipe tiny-cpu                       runs/tiny-cpu/final, port 8000
  python launch/serve.py --model runs/tiny-cpu/round1 --port 8001 --api-key SECRET

All other arguments are vLLM's own (`vllm serve --help=all`), and win over the recipe's.
"""

import os
import shlex
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    parser.add_argument(
        "--model",
        default="final",
        metavar="NAME|PATH|HUB_ID",
        help="base, round1, .., final, or another model of the run; or any other model with "
        "abstract tokens, by its directory or hub id. Of a directory inside a run that run's "
        "recipe is read, unless --recipe names one (default: final)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print vLLM's command line, and do not start it"
    )
    args, arguments = parser.parse_known_args()

    from abscot.pipeline.serve import Server, recipe_beside

    args.recipe = args.recipe or recipe_beside(args.model)
    server = Server.of(cli.recipe_of(args), args.model, arguments)
    command = server.command()
    print(shlex.join(command), flush=True)
    if not args.dry_run:
        # In place of this process: signals reach vLLM itself.
        os.execve(command[0], command, server.environment())


if __name__ == "__main__":
    cli.run(main)
