"""Makes base/: the base model with the abstract vocabulary in its tokenizer and its embedding
table.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common import files
from abscot.pipeline.lease import claimed


def main() -> None:
    args = cli.recipe_parser(__doc__).parse_args()
    recipe = cli.recipe_of(args)
    from abscot.model.extend import extend_base

    with claimed(recipe) as run:
        if files.is_done(run.base):
            print(f"{run.base}: done")
            return
        extend_base(recipe, run)


cli.run(main)
