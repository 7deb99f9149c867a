"""Makes world/: the embedded problems, tokenizer and base model of recipes with a `world`
section.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common import files
from abscot.common.errors import UserError
from abscot.pipeline.lease import claimed


def main() -> None:
    args = cli.recipe_parser(__doc__).parse_args()
    recipe = cli.recipe_of(args)
    if recipe.world is None:
        raise UserError(
            "world: this recipe has no world section; it reads data.source and model.base"
        )
    with claimed(recipe) as run:
        if files.is_done(run.world):
            print(f"{run.world}: done before")
            return
        from abscot.data.toy_world import write

        write(run.world, recipe.world, recipe.seed, recipe.data.system_prompt)


cli.run(main)
