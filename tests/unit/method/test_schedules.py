"""Where traces come from, round by round; schedules that cannot be trained."""

import pytest

from abscot.method.lineage import Training, channel_rows, trainings
from abscot.method.phases import PHASES
from abscot.method.schedules import check
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run
from kit.corpus import refused

PAPER = ("schedule=paper", "rounds=3", "train.epochs=2", "train.phase_epochs={}")
# Keys -> words of the line.
REFUSED = {
    "traces of a baseline": (
        ["traces.sources.sft_cot=[random]"],
        "traces.sources.sft_cot: expected A or B; a baseline reads no traces",
    ),
    "a teacher of a phase that sees the CoT": (
        ["traces.sources.A=[random, model_with_cot]"],
        "traces.sources.A: phase A sees the CoT",
        "expected model, found model_with_cot",
    ),
    "traces of a base that has learnt none": (
        ["traces.sources.A=[model]"],
        "traces.sources.A: ",
        "round 1 A",
        "from random or grounded; found model",
    ),
    "the same behind a phase that is left out": (
        ["train.phase_epochs.A=[0, 1]"],
        "traces.sources.B: ",
        "round 1 B",
    ),
    "a round without phases": (
        ["train.phase_epochs={A: [1, 0], B: [1, 0, 1]}"],
        "train.phase_epochs: round 2 trains no phase",
        "fewer rounds",
    ),
    "no phases at all": (["train.phase_epochs={A: 0, B: 0}"], "round 1 trains no phase"),
    "sources of a fourth round": (
        ["traces.sources.A=[random, model, model, model]"],
        "traces.sources.A: expected at most 3 (one a round), found 4",
    ),
    "epochs of a second round": (
        ["rounds=1", "train.phase_epochs.A=[1, 0]"],
        "train.phase_epochs.A: expected at most 1 (one a round), found 2",
    ),
    "rounds of a baseline": (
        ["train.phase_epochs.pause=[1, 2]"],
        "train.phase_epochs.pause: expected at most 1 (a baseline is trained once), found 2",
    ),
    "no row left to train on": (
        ["world.rows=50", "train.channel_rows=50"],
        "train.channel_rows: expected fewer than the 50 rows",
        "found 50",
    ),
    "no drawn row left to train on": (
        ["data.rows=7", "train.channel_rows=8"],
        "train.channel_rows: expected fewer than the 7 rows",
    ),
}
ALLOWED = {
    "the paper": [],
    "grounded": ["schedule=grounded"],
    "a teacher of B": ["traces.sources.B=[model_with_cot]"],
    "B alone, grounded": ["train.phase_epochs.A=0", "traces.sources.B=[grounded, model]"],
    "as many entries as rounds": ["train.phase_epochs.A=[1, 0, 1]"],
    "a baseline's epochs": ["train.phase_epochs.pause=[3]"],
    "one row left": ["data.rows=8", "train.channel_rows=7"],
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_schedule_that_cannot_be_trained(case):
    keys, *words = case
    refused(lambda: check(load_recipe(None, [*PAPER, *keys])), *words)


@pytest.mark.parametrize("keys", ALLOWED.values(), ids=ALLOWED)
def test_a_schedule_that_can(keys):
    check(load_recipe(None, [*PAPER, *keys]))


def planned(*keys: str) -> list[tuple]:
    """(tag, source, epochs) of each training."""
    recipe = load_recipe(None, [*PAPER, *keys])
    return [(t.tag, t.trace_source, t.epochs) for t in trainings(recipe, Run.of(recipe))]


def test_the_named_schedules():
    assert planned() == [
        ("pi1_phaseA", "random", 2),
        ("pi1_phaseB", "model", 2),
        ("pi2_phaseA", "model", 2),
        ("pi2_phaseB", "model", 2),
        ("pi3_phaseA", "model", 2),
        ("pi3_phaseB", "model", 2),
    ]
    assert planned("schedule=grounded") == [
        ("pi1_phaseA", "grounded", 4),
        ("pi1_phaseB", "grounded", 4),
        ("pi2_phaseB", "grounded", 2),
        ("pi3_phaseB", "grounded", 2),
    ]


def test_a_row_of_the_recipe_goes_before_the_schedule_and_its_last_entry_goes_on():
    keys = ("traces.sources.B=[grounded, model_with_cot]", "train.phase_epochs.A=[5, 0]")
    assert planned(*keys) == [
        ("pi1_phaseA", "random", 5),
        ("pi1_phaseB", "grounded", 2),
        ("pi2_phaseB", "model_with_cot", 2),
        ("pi3_phaseB", "model_with_cot", 2),
    ]


def test_rows_for_the_channel_are_trained_on_by_nobody_and_are_not_all(tmp_path):
    recipe = load_recipe(None, [*PAPER, f"run_root={tmp_path}", "train.channel_rows=5"])
    run, kept = Run.of(recipe), set(channel_rows(recipe, 20).tolist())
    a, b, pause = (Training(recipe, run, PHASES[name], 1) for name in ("A", "B", "pause"))
    for training in (a, b, pause):
        assert set(training.rows(20).tolist()) == set(range(20)) - kept
    assert set(a.trace_rows(20).tolist()) == set(range(20))
    assert set(b.trace_rows(20).tolist()) == set(range(20)) - kept
    refused(lambda: b.rows(5), "train.channel_rows: expected fewer than the 5 rows")
