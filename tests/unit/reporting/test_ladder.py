"""The ladder's tables."""

import json
from dataclasses import replace

import pytest

from abscot.method.phases import baselines
from abscot.recipe.load import load_recipe
from abscot.reporting import model_card, report, run_data
from abscot.reporting.blocks import to_markdown
from abscot.reporting.ladder import (
    Ladder,
    channel_table,
    equalised,
    json_rows,
    ladder_table,
    read_ladder,
    schedules_table,
)
from abscot.reporting.tables import results_table
from kit.synthetic_run import add_phase, add_results, make_run


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A finished ladder's files: SFT (no CoT) 22% right, as its synthetic mode is."""
    keys = {"eval.benchmarks": "[world]", "eval.base_modes": "[thinking, no_cot]"}
    run = make_run(tmp_path_factory.mktemp("ladder"), rounds=2, schedule="paper", **keys)
    recipe = load_recipe(run.config)
    for phase in baselines():
        add_results(run, phase.asked_in, phase.name, "world", 0)
        add_phase(run, phase.name, recipe, steps=480)
    for round_ in (1, 2):
        add_results(run, "channel", f"pi{round_}_phaseA", "world", round_, problems=50, correct=1.0)
    return run


MODES = ("abstract", "abstract_swapped", "abstract_permuted")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The grounded schedule 90% right, 10% behind another's trace; the paper's beside it as bad as
    without CoT.
    """
    keys = {
        "eval.benchmarks": "[world]",
        "eval.base_modes": "[thinking, no_cot]",
        "eval.modes": "[abstract, abstract_swapped, abstract_permuted]",
    }
    root = tmp_path_factory.mktemp("both")
    own = make_run(root, rounds=2, name="r", schedule="grounded", **keys)
    paper = make_run(root, rounds=2, name="r-paper", schedule="paper", **keys)
    recipe = load_recipe(own.config)
    for phase in baselines():
        add_results(own, phase.asked_in, phase.name, "world", 0)
        add_phase(own, phase.name, recipe, steps=480)
    for run, chances in ((own, (0.9, 0.1, 0.4)), (paper, (0.22, 0.22, 0.22))):
        for mode, chance in zip(MODES, chances, strict=True):
            add_results(run, mode, "final", "world", 2, chance=chance)
        add_results(run, "channel", "pi1_phaseA", "world", 1, problems=50, correct=1.0)
    add_results(paper, "channel", "pi2_phaseA", "world", 2, problems=50, correct=1.0)
    return own


def ladder_of(run) -> Ladder:
    return read_ladder(run_data.read(run))


def cells_of(table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_the_table_has_the_papers_rows(climbed):
    table = ladder_table(ladder_of(climbed))
    cells = cells_of(table)
    assert list(cells)[:2] == ["verbal CoT (thinking), base", "no CoT, base"]
    assert list(cells)[-1] == "Abstract-CoT (paper), round 2" and len(cells) == 7
    assert "published" not in table.columns  # nobody published numbers of the toy world
    assert (
        cells["SFT (no CoT)"]["answers"]
        == cells["Abstract-CoT (paper), round 2"]["answers"]
        == f"{480 * 16:,}"
    )
    assert cells["no CoT, base"]["supervised"] == "–"
    assert cells["SFT (no CoT)"]["against SFT (no CoT)"] == "–"
    assert "[+" in cells["verbal CoT (thinking), base"]["against SFT (no CoT)"]


def test_published_numbers_stand_beside_verbal_and_the_last_round_on_math500_alone(tmp_path):
    keys = {
        "eval.benchmarks": "[gsm8k, math500]",
        "eval.base_modes": "[verbal, thinking, no_cot]",
    }
    data = run_data.read(make_run(tmp_path, rounds=2, schedule="paper", **keys))
    table = ladder_table(read_ladder(data))
    beside = {row[:2]: row[-1] for row in table.rows}
    assert table.columns[-1] == "published" and {
        key: cell for key, cell in beside.items() if cell != "–"
    } == {
        ("verbal CoT, base", "math500"): "83.2 @ 1087, 84.6 @ 1045",
        ("Abstract-CoT (paper), round 2", "math500"): "86.2 @ 168, 72.0 @ 432",
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
    (first, second) = channel_table(Ladder(data)).rows
    assert first[:5] == ("paper", "1", "world", "50", "100.0") and second[1] == "2"
    scores = data.of("abstract", "final", "world").scores
    asked = [scores[i] for i in sorted(scores)[:50]]
    assert (
        second[6] == f"{100 * sum(asked) / 50:.1f}"
        and second[7] == f"{100 - 100 * sum(asked) / 50:+.1f}"
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


def test_both_schedules_stand_in_one_table_and_against_each_other(both):
    ladder = ladder_of(both)
    cells = cells_of(ladder_table(ladder))
    assert list(cells)[2:] == [
        "SFT (no CoT)",
        "SFT (CoT)",
        "pause tokens",
        *(f"Abstract-CoT ({name}), round {r}" for name in ("paper", "grounded") for r in (1, 2)),
    ]
    last, papers = (cells[f"Abstract-CoT ({n}), round 2"] for n in ("grounded", "paper"))
    assert float(last["accuracy %"]) > 80 > 50 > float(last["shuffled %"])
    assert float(last["swapped %"]) < 20 < float(last["shuffled %"])
    assert float(last["against SFT (no CoT)"].split()[0]) > 50
    assert (
        cells["SFT (no CoT)"]["swapped %"]
        == cells["verbal CoT (thinking), base"]["shuffled %"]
        == "–"
    )
    # round 2 of the grounded schedule is B alone
    assert (last["answers"], papers["answers"]) == (f"{3 * 120 * 16:,}", f"{4 * 120 * 16:,}")
    ((_, of, against, points, interval),) = schedules_table(ladder).rows
    assert (of, against) == ("Abstract-CoT (grounded), round 2", "Abstract-CoT (paper), round 2")
    difference = float(last["accuracy %"]) - float(papers["accuracy %"])
    assert float(points) == pytest.approx(difference, abs=0.11) and interval.startswith("[+")
    asked = [row[:2] for row in channel_table(ladder).rows]
    assert asked == [("paper", "1"), ("paper", "2"), ("grounded", "1")]


def test_json_says_what_the_table_says_and_null_where_nothing_was_asked(both):
    ladder = ladder_of(both)
    rows = [json.loads(line) for line in json_rows(ladder).splitlines()]
    cells = cells_of(ladder_table(ladder))
    assert [row["label"] for row in rows] == list(cells)
    for row in rows:
        cell = cells[row["label"]]
        assert cell["accuracy %"] == f"{row['accuracy']:.1f}"
        assert row["low"] < row["accuracy"] < row["high"] and row["n"] == 200
        assert f"{row['tokens']:.1f}" == cell["total"]
        for key, column in (("swapped", "swapped %"), ("permuted", "shuffled %")):
            assert cell[column] == ("–" if row[key] is None else f"{row[key]:.1f}")
        if cell["answers"] != "–":
            assert f"{row['answers']:,}" == cell["answers"]
    final = rows[-1]
    assert final["difference_low"] < final["difference"] < final["difference_high"]
    assert rows[0]["swapped"] is None and rows[2]["difference"] is None


def test_the_report_of_a_run_shows_the_schedule_beside_it_unless_that_is_of_another_recipe(both):
    text = to_markdown(report.blocks(run_data.read(both), {}))
    assert "| Abstract-CoT (paper), round 2 | world |" in text
    data = run_data.read(both)
    changed = replace(data, recipe=replace(data.recipe, seed=7))
    ladder = read_ladder(changed)
    assert ladder.beside == () and "seed is 0 there, 7 here" in ladder.left_out[0]
    text = to_markdown(report.blocks(changed, {}))
    assert "Abstract-CoT (paper)" not in text and "rows are left out" in text


def test_a_run_with_one_baseline_shows_that_row_and_no_other(tmp_path):
    keys = {"eval.benchmarks": "[world]", "baselines": "[pause]"}
    run = make_run(tmp_path, rounds=1, schedule="paper", **keys)
    assert not ladder_of(run).is_there
    assert "pause" in to_markdown(report.blocks(run_data.read(run), {}))  # missing, and named
    add_results(run, "pause", "pause", "world", 0)
    ladder = ladder_of(run)
    assert ladder.is_there and list(cells_of(ladder_table(ladder))) == [
        "verbal CoT (thinking), base",
        "no CoT, base",
        "pause tokens",
        "Abstract-CoT (paper), round 1",
    ]


def test_the_plan_says_epochs_by_round_and_what_may_end_early():
    keys = ["train.channel_rows=10", "train.until_channel=0.9", "schedule=grounded"]
    grounded, paper = load_recipe(None, keys), load_recipe(None, ["schedule=paper"])
    line = equalised(grounded, [paper])
    assert "Abstract-CoT (grounded) at most 6 times in 3 rounds (epochs of A 2, 0, 0;" in line
    assert "of B 2, 1, 1; A may end early, at a channel of 90%)" in line
    assert "Abstract-CoT (paper) 6 times in 3 rounds (epochs of A 1, 1, 1; of B 1, 1, 1)" in line
    assert "as often as Abstract-CoT (grounded), in whole epochs: sft_no_cot 6" in line
    custom = load_recipe(None, ["schedule=paper", "traces.sources={A: [random]}"])
    assert "Abstract-CoT (custom) 6 times" in equalised(custom)
