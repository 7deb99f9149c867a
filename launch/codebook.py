"""Makes codebook/: the codes of grounded traces, centroids of the base's hidden states at steps of
CoTs; or takes the one of grounding.codebook.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common import files
from abscot.common.errors import UserError
from abscot.method.lineage import trainings
from abscot.method.schedules import GROUNDED
from abscot.pipeline.lease import claimed
from abscot.recipe.run import Run


def main() -> None:
    args = cli.recipe_parser(__doc__).parse_args()
    recipe = cli.recipe_of(args)
    if not any(t.trace_source == GROUNDED for t in trainings(recipe, Run.of(recipe))):
        raise UserError(
            "traces.sources: no phase of this recipe has grounded traces, and so no codebook; use "
            "--set schedule=grounded"
        )
    files.require(Run.of(recipe).base, Run.of(recipe).shards)
    with claimed(recipe) as run:
        if files.is_done(run.codebook):
            print(f"{run.codebook}: already done")
            return
        from abscot.generation.codebook_job import make_codebook

        make_codebook(recipe, run)
        print(f"{run.codebook}: done")


cli.run(main)
