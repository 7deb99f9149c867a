"""Every recipe key is explained, on a page that is made from the dataclasses, and the names that a
recipe may choose are those of the tables.
"""

import re
import typing

import pytest

from abscot.data.formats import ADAPTERS
from abscot.evaluation.benchmarks import BENCHMARKS
from abscot.evaluation.modes import MODES
from abscot.method.phases import PHASES, baselines, loop
from abscot.method.schedules import CUSTOM, MODEL, SCHEDULES, check, schedule_of
from abscot.model.attention import BACKENDS
from abscot.recipe import names, schema
from abscot.recipe.keys import PAGE, page
from abscot.recipe.load import load_recipe
from abscot.training.optimizer import OPTIMIZERS


def test_the_page_of_keys_is_current():
    assert PAGE.read_text() == page(), "run: python -m abscot.recipe.keys"


def test_every_key_has_a_word_of_explanation():
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| (.*) \|$", page(), re.MULTILINE)
    assert len(rows) > 90
    assert [key for key, note in rows if not note.strip()] == []


def test_the_page_tells_the_schedules_as_they_are_and_its_own_one_can_be_trained(tmp_path):
    for name, schedule in SCHEDULES.items():
        cells = [f"`{name}`", f"`Abstract-CoT ({name})`"]
        for phase in loop():
            sources = schedule.sources.get(phase.name, (MODEL,))
            cells.append(", ".join(f"`{source}`" for source in sources))
        cells += [", ".join(map(str, schedule.epochs.get(p.name, (1,)))) for p in loop()]
        assert f"| {' | '.join(cells)} |" in page()
    file = tmp_path / "own.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", page(), re.DOTALL)[1])
    recipe = load_recipe(file, ["world={}"])
    check(recipe)
    assert schedule_of(recipe) == CUSTOM


@pytest.mark.parametrize(
    "names, table",
    [
        (names.PhaseName, PHASES),
        (names.BaselineName, [phase.name for phase in baselines()]),
        (names.ScheduleName, SCHEDULES),
        (names.ModeName, MODES),
        (names.BenchmarkName, BENCHMARKS),
        (typing.get_type_hints(schema.DataConfig)["format"], ADAPTERS),
        # flex is there for benchmarks alone
        (typing.get_type_hints(schema.ModelConfig)["attention"], {"auto", *BACKENDS} - {"flex"}),
        (typing.get_type_hints(schema.OptimizerConfig)["name"], OPTIMIZERS),
    ],
    ids="phases baselines schedules modes benchmarks formats attention optimizers".split(),
)
def test_a_recipe_chooses_from_the_tables(names, table):
    assert set(typing.get_args(names)) == set(table)
