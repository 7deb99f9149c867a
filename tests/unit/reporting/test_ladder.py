"""The ladder's tables."""

import pytest

from abscot.method.phases import baselines
from abscot.recipe.load import load_recipe
from abscot.reporting import model_card, report, run_data
from abscot.reporting.blocks import to_markdown
from abscot.reporting.ladder import channel_table, ladder_table
from abscot.reporting.tables import results_table
from kit.synthetic_run import add_phase, add_results, make_run


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A finished ladder's files: SFT (no CoT) 22% right, as its synthetic mode is."""
    keys = {"eval.benchmarks": "[world]", "eval.base_modes": "[thinking, no_cot]"}
    run = make_run(tmp_path_factory.mktemp("ladder"), rounds=2, **keys)
    recipe = load_recipe(run.config)
    for phase in baselines():
        add_results(run, phase.asked_in, phase.name, "world", 0)
        add_phase(run, phase.name, recipe, steps=480)
    for round_ in (1, 2):
        add_results(run, "channel", f"pi{round_}_phaseA", "world", round_, problems=50, correct=1.0)
    return run


def cells_of(table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_the_table_has_the_papers_rows(climbed):
    table = ladder_table(run_data.read(climbed))
    cells = cells_of(table)
    assert list(cells)[:2] == ["thinking, base", "no CoT, base"]
    assert list(cells)[-1] == "Abstract-CoT, round 2" and len(cells) == 7
    assert "published" not in table.columns  # nobody published numbers of the toy world
    assert (
        cells["SFT (no CoT)"]["answers"]
        == cells["Abstract-CoT, round 2"]["answers"]
        == f"{480 * 16:,}"
    )
    assert cells["no CoT, base"]["supervised"] == "–"
    assert cells["SFT (no CoT)"]["against SFT (no CoT)"] == "–"
    assert "[+" in cells["thinking, base"]["against SFT (no CoT)"]


def test_published_numbers_stand_beside_verbal_and_the_last_round_on_math500_alone(tmp_path):
    keys = {
        "eval.benchmarks": "[gsm8k, math500]",
        "eval.base_modes": "[verbal, thinking, no_cot]",
    }
    data = run_data.read(make_run(tmp_path, rounds=2, **keys))
    table = ladder_table(data)
    beside = {row[:2]: row[-1] for row in table.rows}
    assert table.columns[-1] == "published" and {
        key: cell for key, cell in beside.items() if cell != "–"
    } == {
        ("verbal CoT, base", "math500"): "83.2 @ 1087, 84.6 @ 1045",
        ("Abstract-CoT, round 2", "math500"): "86.2 @ 168, 72.0 @ 432",
    }
    shown = {row[:3]: row[-1] for row in results_table(data).rows if row[-1] != "–"}
    assert shown == {
        ("verbal", "base", "math500"): "83.2 @ 1087, 84.6 @ 1045",
        ("abstract", "final", "math500"): "86.2 @ 168, 72.0 @ 432",
    }
    card = model_card.card(data, "me/mine", 512)
    lines = [line for line in card.splitlines() if "@" in line and line.startswith("|")]
    assert [line.split("|")[1:4] for line in lines[1:]] == [
        [" verbal ", " base ", " math500 "],
        [" abstract ", " final ", " math500 "],
    ]


@pytest.mark.parametrize(
    ("base_modes", "named"),
    [("[thinking, no_cot]", "thinking"), ("[thinking, verbal]", "verbal"), ("[no_cot]", None)],
)
def test_abstract_is_compared_with_the_reasoning_in_words_that_is_there(
    tmp_path, base_modes, named
):
    keys = {"eval.benchmarks": "[world]", "eval.base_modes": base_modes}
    data = run_data.read(make_run(tmp_path, rounds=1, **keys))
    text = to_markdown(report.blocks(data, {}))
    assert (f"the base in mode {named} " in text) is (named is not None)
    assert (f"| abstract final | {named} base |" in text) is (named is not None)


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
