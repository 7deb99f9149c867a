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


def main() -> None:
    args = cli.recipe_parser(__doc__).parse_args()
    recipe = cli.recipe_of(args)
    from abscot.model.extend import check_base, extend_base

    base = Run.of(recipe).base
    # Before anything is written.
    source = None if files.is_done(base) else check_base(recipe, Run.of(recipe))
    with claimed(recipe) as run:
        if files.is_done(base):
            print(f"{base}: done")
            return
        extend_base(recipe, run, source)


cli.run(main)
