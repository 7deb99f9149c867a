"""How the codes of CoT steps are used, as the report tells it."""

import json

import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.generation.codebook import META
from abscot.generation.trace_records import STATS
from abscot.recipe.run import Run
from abscot.reporting import codes, model_card, report, run_data
from abscot.reporting.blocks import to_markdown
from kit.synthetic_run import add_codebook, make_run

EVEN = [5, 5, 6, 4]


def add_counts(run: Run, tag: str, *levels: list[int]) -> None:
    path = run.traces(tag) / STATS
    counts = {
        "steps": 1234,
        "blank_steps": 11,
        "cut_rows": 22,
        "filled_rows": 33,
        "rows_without_steps": 44,
        "code_counts": levels,
    }
    files.write_json_atomic(path, {**json.loads(path.read_text()), "grounded": counts})


@pytest.fixture
def run(tmp_path) -> Run:
    keys = {"eval.benchmarks": "[world]", "schedule": "grounded"}
    return make_run(tmp_path, rounds=1, **keys)


def text_of(run: Run) -> str:
    return to_markdown(report.blocks(run_data.read(run), {}))


def test_codebook_and_sets_are_told_level_by_level(run):
    add_codebook(run, EVEN, [9, 0, 1, 10])
    add_counts(run, "pi1_phaseA", EVEN, [2, 0, 0, 0])
    text = text_of(run)
    for line in (
        "| codebook | 0 | 20 | 0 of 4 | 30.0 |",
        "| codebook | 1 | 20 | 1 of 4 | 50.0 |",
        "| pi1_phaseA | 0 | 20 | 0 of 4 | 30.0 |",
        "| pi1_phaseA | 1 | 2 | 3 of 4 | 100.0 |",
        "| pi1_phaseA | 1,234 | 11 | 22 | 33 | 44 |",
    ):
        assert line in text
    assert "Layer 10 of 28, position before_result, 4 codes a level" in text.replace("\\", "")
    assert "20 states of 7 rows" in text and "No sign of collapse" in text


def test_dead_and_dominating_codes_are_warnings(run):
    add_codebook(run, [6, 0, 0, 0])
    add_counts(run, "pi1_phaseA", [3, 5, 1, 0])
    assert codes.warnings(run_data.read(run)) == [
        "codebook, codes of level 0: 3 of 4 are never used",
        "codebook, codes of level 0: one has 100% of the states",
        "pi1_phaseA, codes of level 0: one has 56% of the states",
    ]
    text = text_of(run)
    assert "**Warning:** codebook, codes of level 0: 3 of 4" in text
    assert "No sign of collapse" not in text


def test_a_run_without_grounded_traces_tells_nothing_of_codes(run):
    data = run_data.read(run)
    assert "Codes of the CoT" not in text_of(run) and codes.warnings(data) == []
    assert "codebook/" not in model_card.card(data, "me/mine", 512)
    add_codebook(run, EVEN)
    assert "`codebook/`, beside the weights" in model_card.card(run_data.read(run), "me/mine", 512)


def test_a_damaged_codebook_is_named(run):
    add_codebook(run, EVEN)
    path = run.codebook / META
    path.write_text(path.read_text().replace('"states": 20', '"states": 21'))
    with pytest.raises(UserError, match=r"codebook\.json.*launch/codebook\.py"):
        run_data.read(run)
