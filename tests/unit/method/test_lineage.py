"""Which model comes from which: the loop of A and B, and the same loop with a third phase in it."""

import dataclasses
from unittest.mock import patch

import numpy as np
import pytest

from abscot.common import files
from abscot.common.errors import UserError
from abscot.method.lineage import (
    Training,
    baseline_epochs,
    model_named,
    phase_models,
    round_models,
    trainings,
)
from abscot.method.phases import PHASES, Phase, baselines, loop
from abscot.pipeline.preflight import stage_walltimes
from abscot.pipeline.stages import stages_of
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run
from abscot.reporting import plots, report, run_data
from abscot.reporting.blocks import Warnings
from abscot.reporting.ladder import equalised
from kit.corpus import refused
from kit.synthetic_run import make_run

PAPER = ("schedule=paper", "train.channel_rows=0")


def recipe_of(tmp_path, *keys: str):
    return load_recipe(None, [f"run_root={tmp_path}", "rounds=2", *PAPER, *keys])


@pytest.fixture
def third_phase():
    """A phase behind B in the loop."""
    looped = {phase.name: phase for phase in loop()}
    phase = Phase("R", "XZY", "ZY", "model", "reinforcement, say", iterated=True)
    rows = {**looped, "R": phase, **{row.name: row for row in baselines()}}
    with patch.dict(PHASES, rows, clear=True):  # which puts the order of the rows back as well
        yield phase


def test_the_loop_of_two_phases(tmp_path):
    recipe = recipe_of(tmp_path)
    run = Run.of(recipe)
    shown = [
        (t.tag, *(p and str(p.relative_to(run.root)) for p in (t.start, t.trace_model, t.export)))
        for t in trainings(recipe, run)
    ]
    assert shown == [
        ("pi1_phaseA", "base", None, "checkpoints/pi1_phaseA/export"),
        ("pi1_phaseB", *["checkpoints/pi1_phaseA/export"] * 2, "round1"),
        ("pi2_phaseA", *["round1"] * 2, "checkpoints/pi2_phaseA/export"),
        ("pi2_phaseB", *["checkpoints/pi2_phaseA/export"] * 2, "final"),
    ]


def test_the_grounded_loop_trains_a_once_and_has_its_traces_from_the_codebook(tmp_path):
    recipe = recipe_of(tmp_path, "schedule=grounded")
    run = Run.of(recipe)
    shown = [
        (t.tag, *(str(p.relative_to(run.root)) for p in (t.start, t.trace_maker, t.export)))
        for t in trainings(recipe, run)
    ]
    assert shown == [
        ("pi1_phaseA", "base", "codebook", "checkpoints/pi1_phaseA/export"),
        ("pi1_phaseB", "checkpoints/pi1_phaseA/export", "codebook", "round1"),
        ("pi2_phaseB", "round1", "codebook", "final"),
    ]
    assert {t.trace_model for t in trainings(recipe, run)} == {None}


def test_a_baseline_starts_from_the_base_and_reads_no_traces(tmp_path):
    recipe = recipe_of(tmp_path)
    run = Run.of(recipe)
    for name in ("sft_cot", "sft_no_cot", "pause"):
        training = Training(recipe, run, PHASES[name], 1)
        assert training.start == run.base and training.trace_model is None
        assert training.inputs == [run.shards, run.base]
        assert training.export == run.root / "checkpoints" / name / "export"


def test_models_by_their_names(tmp_path):
    recipe = recipe_of(tmp_path, "eval.modes=[abstract, abstract_permuted]")
    run = Run.of(recipe)
    found = {
        m.name: (m.round, m.modes) for m in (*round_models(recipe, run), *phase_models(recipe, run))
    }
    abstract = ("abstract", "abstract_permuted")
    assert found == {
        "base": (0, ("thinking", "no_cot")),
        "round1": (1, abstract),
        "final": (2, abstract),
        "pi1_phaseA": (1, ("channel",)),
        "pi2_phaseA": (2, ("channel",)),
        "sft_no_cot": (None, ("no_cot",)),
        "sft_cot": (None, ("thinking",)),
        "pause": (None, ("pause",)),
    }
    with pytest.raises(UserError, match="--model round2: expected all, one of base, round1, final"):
        model_named(recipe, run, "round2")


def test_models_on_their_way_are_named_as_far_as_they_are_there(tmp_path):
    recipe = recipe_of(tmp_path)
    run = Run.of(recipe)
    training = Training(recipe, run, PHASES["B"], 1)
    for step in (20, 100):
        with files.publish(training.intermediate(step)):
            pass
    with files.publish(Training(recipe, run, PHASES["sft_cot"], 1).intermediate(5)):
        pass
    training.intermediate(40).mkdir()  # without DONE
    (run.root / "intermediate" / "pi1_phaseB_stepx").mkdir()
    assert training.exported_steps() == [20, 100]
    found = model_named(recipe, run, "pi1_phaseB_step100")
    assert found.directory == run.root / "intermediate" / "pi1_phaseB_step100"
    assert (found.round, found.modes) == (1, tuple(recipe.eval.modes))
    baseline = model_named(recipe, run, "sft_cot_step5")
    assert (baseline.round, baseline.modes) == (None, ("thinking",))
    for name in ("pi1_phaseB_step40", "pi1_phaseB_step0100", "pi1_phaseB_stepx", "pi1_phaseB"):
        there = "pause, pi1_phaseB_step20, pi1_phaseB_step100, sft_cot_step5"
        refused(lambda: model_named(recipe, run, name), f"--model {name}: ", there)  # noqa: B023


def test_a_third_phase_is_trained_from_the_second_and_followed_by_the_next_round(
    tmp_path, third_phase
):
    recipe = recipe_of(tmp_path)
    run = Run.of(recipe)
    by_name = {stage.name: stage for stage in stages_of(recipe)}
    assert list(by_name)[4:] == [
        *[f"{kind}_pi1_phase{phase}" for phase in "ABR" for kind in ("traces", "train")],
        "evaluate_round1",
        *[f"{kind}_pi2_phase{phase}" for phase in "ABR" for kind in ("traces", "train")],
        "evaluate_final",
    ]
    of_b = run.checkpoints("pi1_phaseB") / "export"
    assert by_name["train_pi1_phaseB"].outputs == (of_b,)
    assert of_b in by_name["traces_pi1_phaseR"].inputs
    assert {of_b, run.traces("pi1_phaseR")} <= set(by_name["train_pi1_phaseR"].inputs)
    assert by_name["train_pi1_phaseR"].outputs == (run.root / "round1",)
    for name in ("traces_pi2_phaseA", "train_pi2_phaseA", "evaluate_round1"):
        assert run.root / "round1" in by_name[name].inputs
    assert by_name["train_pi2_phaseR"].outputs == (run.root / "final",)
    made = {path for stage in by_name.values() for path in stage.outputs}
    assert all(path in made for stage in by_name.values() for path in stage.inputs)
    assert list(stage_walltimes(recipe, 2)) == [
        name for name in by_name if name.startswith(("traces", "train"))
    ]


def test_a_third_phase_has_its_own_rows_where_the_data_are_parted(tmp_path, third_phase):
    recipe = recipe_of(tmp_path, "staging=partition")
    parts = [t.rows(600) for t in trainings(recipe, Run.of(recipe))]
    assert [len(part) for part in parts] == [100] * 6
    assert sorted(row for part in parts for row in part) == list(range(600))


def test_the_report_draws_a_third_phase(tmp_path, third_phase):
    run = make_run(tmp_path, rounds=2, schedule="paper")
    page = report.write(run).read_text()
    assert "pi1_phaseR" in page and "pi2_phaseR" in page
    data = run_data.read(run)
    with plots.plt.rc_context(plots.STYLE):
        figure, _ = plots.trace_lengths(data)
    assert [axes.get_title("left") for axes in figure.axes] == [
        f"round {round_} {phase}" for round_ in (1, 2) for phase in "ABR"
    ]
    unfinished = dataclasses.replace(data, logs={})
    warned = next(b for b in report.blocks(unfinished, {}) if isinstance(b, Warnings))
    assert "pi1_phaseR" in warned.items[0]


def recipe_with(*overrides):
    return load_recipe("tiny-cpu", [*PAPER, *overrides])


@pytest.mark.parametrize(
    ("overrides", "asked", "given"),
    [
        ([], 6, 6),  # 3 rounds x (A + B)
        (["rounds=2", "train.epochs=3"], 12, 12),
        (["train.phase_epochs={A: 3, B: 2}"], 15, 15),
        (["staging=partition", "train.epochs=3"], 3, 3),  # the phases share the rows out
        # half an epoch cannot be trained
        (["staging=partition", "train.phase_epochs={A: 2, B: 3}"], 2.5, 2),
        (["train.phase_epochs={sft_no_cot: 9}"], 6, 9),
        (["schedule=grounded"], 6, 6),  # A and B twice, then B, B
        (["schedule=grounded", "rounds=2", "train.epochs=3"], 15, 15),
        (["schedule=grounded", "staging=partition"], 1.5, 2),
    ],
)
def test_a_baseline_reads_each_answer_as_often_as_all_rounds_together(overrides, asked, given):
    recipe = recipe_with(*overrides)
    assert baseline_epochs(recipe, PHASES["sft_no_cot"]) == given
    assert f"{asked} times" in equalised(recipe) and f"sft_no_cot {given}" in equalised(recipe)


def test_partition_covers_the_data_once_and_reuse_gives_all_of_it():
    recipe = load_recipe(None, [*PAPER, "staging=partition", "rounds=3"])
    phases = [(PHASES[name], round_) for round_ in (1, 2, 3) for name in "AB"]
    parts = [Training(recipe, Run.of(recipe), phase, round_).rows(1000) for phase, round_ in phases]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert {len(part) for part in parts} == {166, 167}
    assert len(Training(recipe, Run.of(recipe), PHASES["sft_cot"], 1).rows(1000)) == 1000
    reuse = load_recipe(None, [*PAPER, "staging=reuse"])
    assert len(Training(reuse, Run.of(reuse), PHASES["B"], 2).rows(1000)) == 1000
