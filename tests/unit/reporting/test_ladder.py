"""The ladder's tables."""

import pytest

from abscot.method.phases import baselines
from abscot.recipe.load import load_recipe
from abscot.reporting import report, run_data
from abscot.reporting.blocks import to_markdown
from abscot.reporting.ladder import channel_table, ladder_table
from kit.synthetic_run import add_phase, add_results, make_run


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A finished ladder's files: SFT (no CoT) 22% right, as its synthetic mode is."""
    keys = {"eval.benchmarks": "[world]", "eval.base_modes": "[verbal, no_cot]"}
    run = make_run(tmp_path_factory.mktemp("ladder"), rounds=2, **keys)
    recipe = load_recipe(run.config)
    for phase in baselines():
        add_results(run, phase.asked_in, phase.name, "world", 0)
        add_phase(run, phase.name, recipe, steps=480)
    for round_ in (1, 2):
        add_results(run, "channel", f"pi{round_}_phaseA", "world", round_, problems=50, correct=1.0)
    return run


def test_the_table_has_the_papers_rows_beside_the_papers_numbers(climbed):
    table = ladder_table(run_data.read(climbed))
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(cells)[-1] == "Abstract-CoT, round 2" and len(cells) == 7
    assert (
        cells["verbal CoT, base"]["paper %"],
        cells["Abstract-CoT, round 2"]["paper tokens"],
    ) == ("83.2", "168")
    assert {cells[label]["paper %"] for label in list(cells)[1:-1]} == {"–"}
    assert (
        cells["SFT (no CoT)"]["answers"]
        == cells["Abstract-CoT, round 2"]["answers"]
        == f"{480 * 16:,}"
    )
    assert cells["no CoT, base"]["supervised"] == "–"
    assert (
        cells["SFT (no CoT)"]["against SFT (no CoT)"] == "–"
        and "[+" in cells["verbal CoT, base"]["against SFT (no CoT)"]
    )


def test_the_gap_is_paired_over_the_problems_that_both_were_asked(climbed):
    data = run_data.read(climbed)
    (first, second) = channel_table(data).rows
    assert first[:4] == ("1", "world", "50", "100.0") and second[0] == "2"
    scores = data.of("abstract", "final", "world").scores
    asked = [scores[i] for i in sorted(scores)[:50]]
    assert (
        second[5] == f"{100 * sum(asked) / 50:.1f}"
        and second[6] == f"{100 - 100 * sum(asked) / 50:+.1f}"
    )


def test_the_report_shows_ladder_and_channel_and_a_plain_run_neither(climbed, tmp_path):
    text = to_markdown(report.blocks(run_data.read(climbed), {}))
    assert (
        "### The ladder" in text
        and "### The channel" in text
        and "| SFT (no CoT) | world |" in text
    )
    plain = to_markdown(report.blocks(run_data.read(make_run(tmp_path, rounds=1)), {}))
    assert "The ladder" not in plain and "The channel" not in plain
