"""Makes base/: the base model with the abstract vocabulary in its tokenizer and its embedding
table.
"""

import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from abscot import cli, paths  # noqa: E402


def main() -> None:
    args = cli.recipe_parser(__doc__).parse_args()
    recipe = cli.recipe_of(args)
    from abscot import model

    run = paths.claim(recipe)
    if paths.is_done(run.base):
        print(f"{run.base}: done")
        return
    model.extend_base(recipe, run)


cli.run(main)
