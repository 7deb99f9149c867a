"""Makes base/: the base model with the abstract vocabulary in its tokenizer and its embedding
table.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common import files
from abscot.pipeline.lease import claimed
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


def main() -> None:
    args = cli.recipe_parser(__doc__).parse_args()
    recipe = cli.recipe_of(args)
    source = None if files.is_done(Run.of(recipe).base) else checked(recipe)
    with claimed(recipe) as run:
        if files.is_done(run.base):
            print(f"{run.base}: done")
            return
        from abscot.model.extend import extend_base

        extend_base(recipe, run, source)


def checked(recipe: Recipe):
    """The base, wholly checked before anything is written; only this needs transformers."""
    from abscot.model.extend import check_base

    return check_base(recipe, Run.of(recipe))


cli.run(main)
