"""Shards of one machine; the traces behind an evaluation."""

import sys

import pytest

from abscot.method.lineage import round_models
from abscot.pipeline.fan_out import engines_here, generate_on_this_machine, training_behind
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run
from kit.corpus import refused


def test_shards_of_one_machine_run_together_and_a_failure_is_the_exit_code(tmp_path):
    script = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[1], sys.argv[3]).touch(); sys.exit(3 * "
        "(sys.argv[3] == '1'))"
    )
    assert generate_on_this_machine([sys.executable, "-c", script, str(tmp_path)], 3, 1) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "number, visible, tensor_parallel, engines",
    [(8, None, 1, 8), (8, None, 2, 4), (8, "4,5,6", 2, 1), (1, None, 2, 1), (0, None, 1, 1)],
)
def test_a_machine_has_as_many_engines_as_its_gpus_hold(
    machine, number, visible, tensor_parallel, engines
):
    machine(number, **({"CUDA_VISIBLE_DEVICES": visible} if visible else {}))
    recipe = load_recipe(None, [f"inference.tensor_parallel={tensor_parallel}"])
    assert recipe.traces.shards is None and engines_here(recipe) == engines


def behind(tmp_path, number: int, *keys: str):
    """The training behind the model of a round, of three."""
    recipe = load_recipe(None, [f"run_root={tmp_path}", "rounds=3", "schedule=paper", *keys])
    run = Run.of(recipe)
    return training_behind(recipe, run, round_models(recipe, run)[number])


@pytest.mark.parametrize(
    "keys, expected",
    [
        ((), "pi2_phaseA"),
        (("train.phase_epochs.A=[1, 0]",), "pi2_phaseB"),
        (("train.phase_epochs.A=[1, 0]", "traces.sources.B=[model_with_cot]"), "pi2_phaseB"),
        (("train.phase_epochs.B=[1, 0, 1]",), "pi2_phaseA"),
    ],
    ids=["paper", "without A", "a teacher", "without B"],
)
def test_a_rounds_model_makes_the_traces_of_the_training_that_starts_from_it(
    tmp_path, keys, expected
):
    assert behind(tmp_path, 1, *keys).tag == expected


@pytest.mark.parametrize(
    "number, keys, words",
    [
        (0, (), ("no round follows base", "round1, round2")),
        (3, (), ("no round follows final", "round1, round2")),
        (1, ("traces.sources.A=[grounded]",), ("round 2 A", "grounded", "leave it out")),
        (1, ("traces.sources.A=[random]",), ("round 2 A", "random", "leave it out")),
    ],
    ids=["the base", "the last", "grounded", "random"],
)
def test_no_traces_are_made_where_no_model_makes_them(tmp_path, number, keys, words):
    refused(lambda: behind(tmp_path, number, *keys), "--then-traces: ", *words)
