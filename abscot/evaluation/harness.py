"""What lm-evaluation-harness calls for the tasks in launch/harness/: our problems, with the system
prompt that they are asked behind, and our verdicts. The harness is not imported.
"""

import dataclasses
import json
from collections.abc import Sequence

from abscot.common.errors import UserError
from abscot.evaluation import benchmarks
from abscot.evaluation.scoring import Verdict, score_all
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run, open_run
from abscot.recipe.schema import Recipe

SPLIT = "test"


def problems(benchmark: str, **metadata) -> dict:
    """{SPLIT: a table of the problems}, as `evaluate` asks them for the run or recipe.

    metadata: what `--metadata` names: `run`, a run's directory, or `recipe`, a file; under the name
    of a benchmark, a local file instead of the recipe's or the hub's. The harness adds the
    arguments of its model, which are not looked at.
    """
    from datasets import Dataset

    run, recipe = _asked(metadata)
    if (file := metadata.get(benchmark)) is not None:
        files = {**recipe.eval.files, benchmark: str(file)}
        recipe = dataclasses.replace(recipe, eval=dataclasses.replace(recipe.eval, files=files))
    rows = [
        {
            "benchmark": benchmark,
            "id": problem.id,
            "system": recipe.data.system_prompt or "",
            "problem": problem.problem,
            "gold": problem.gold,
        }
        for problem in benchmarks.load(benchmark, recipe, run)
    ]
    return {SPLIT: Dataset.from_list(rows)}


def _asked(metadata: dict) -> tuple[Run, Recipe]:
    run, file = metadata.get("run"), metadata.get("recipe")
    if (run is None) is (file is None):
        raise UserError("--metadata: expected run=DIRECTORY or recipe=FILE, one of them")
    if run is not None:
        return open_run(str(run))
    recipe = load_recipe(str(file))
    return Run.of(recipe), recipe


def verdicts(responses: Sequence[Sequence[str]], rows: Sequence[dict]) -> list[str]:
    """The verdict on the first response to each problem, as JSON, for the harness logs its text.
    All in one call, so that the processes of math-verify start once.
    """
    scorer = benchmarks.BENCHMARKS[rows[0]["benchmark"]].scorer
    texts = [response[0].strip() for response in responses]
    found = score_all(scorer, texts, [row["gold"] for row in rows])
    return [json.dumps(dataclasses.asdict(verdict)) for verdict in found]


def scores(row: dict, found: Sequence[str]) -> dict[str, float]:
    """`correct` and `correct_any` of a result row, under the names of their means."""
    verdict = Verdict(**json.loads(found[0]))
    return {"accuracy": verdict.score, "accuracy_any": verdict.score_any}
