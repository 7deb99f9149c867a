"""Makes base/: the base model with the abstract vocabulary in its tokenizer and its embedding
table.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common import files
from abscot.pipeline.lease import claimed
from abscot.recipe.run import Run, claim


def main() -> None:
    args = cli.recipe_parser(__doc__).parse_args()
    recipe = cli.recipe_of(args)
    if files.is_done(Run.of(recipe).base):
        print(f"{claim(recipe).base}: done")
        return
    from abscot.model.extend import check_base, extend_base

    source = check_base(recipe, Run.of(recipe))  # before anything is written
    with claimed(recipe) as run:
        if files.is_done(run.base):  # by another command, until now
            print(f"{run.base}: done")
            return
        extend_base(recipe, run, source)


cli.run(main)
