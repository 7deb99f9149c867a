"""Makes world/: the embedded problems, tokenizer and base model of recipes with a `world` section."""

import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from abscot import cli, paths  # noqa: E402
from abscot.config import UserError  # noqa: E402


def main() -> None:
    args = cli.recipe_parser(__doc__).parse_args()
    recipe = cli.recipe_of(args)
    if recipe.world is None:
        raise UserError(
            "world: this recipe has no world section; it reads data.source and model.base"
        )
    run = paths.claim(recipe)
    if paths.is_done(run.world):
        print(f"{run.world}: done before")
        return
    from abscot import world

    world.write(run.world, recipe.world, recipe.seed, recipe.data.system_prompt)


cli.run(main)
