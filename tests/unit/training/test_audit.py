"""The audit: every kind of mismatch is found."""

import json
import subprocess
import sys

import numpy as np
import pytest

from abscot.common.files import publish, write_json_atomic
from abscot.method.lineage import Training
from abscot.method.phases import loop
from abscot.packing.make_plan import make_plan
from abscot.packing.plan import Plan, rows_digest
from abscot.recipe.load import ROOT, dump, load_recipe
from abscot.recipe.run import Run
from abscot.training.audit import audit, render
from abscot.training.record import TrainLog
from kit.synthetic_run import channel_entry, step_entry, train_log_meta, write_manifest


@pytest.fixture
def trained(tmp_path):
    """(recipe, run) with plans and logs of a finished two-round run of 40 rows."""
    recipe = load_recipe(
        None,
        [
            f"run_root={tmp_path}",
            "rounds=2",
            "train.epochs=2",
            "schedule=paper",
            "staging=partition",
            "train.capacity_tokens=64",
            "train.channel_rows=8",
            "train.channel_every_steps=2",
            "train.until_channel=0.9",
        ],
    )
    run = Run.of(recipe)
    with publish(run.shards) as directory:
        write_manifest(directory, rows=48)
    run.config.write_text(dump(recipe))
    lengths = np.random.default_rng(0).integers(1, 64, 48)
    for round_ in (1, 2):
        for phase in loop():
            tag = phase.tag(round_)
            plan = make_plan(
                lengths,
                lengths,
                lengths,
                seed=0,
                epochs=2,
                capacity_tokens=64,
                global_batch_examples=4,
                round_=round_,
                phase=phase.name,
                rows=Training(recipe, run, phase, round_).rows(48),
            )
            plan.save(run.plan_of(tag), "key")
            planned = [plan.step(k) for k in range(plan.num_steps)]
            steps = [
                step_entry(k, examples=step.examples, rows_digest=rows_digest(step.rows))
                for k, step in enumerate(planned)
            ]
            meta = train_log_meta(tag=tag, plan_hash=plan.hash, num_steps=plan.num_steps)
            measured = []
            if Training(recipe, run, phase, round_).measures_channel:
                meta = meta.model_copy(update={"until_channel": 0.9})
                measured = [channel_entry(step, 0.1) for step in (1, 3, 5)]
            TrainLog(meta=meta, steps=steps, channel=measured).write(run.train_log(tag))
    return recipe, run


def edit(run: Run, tag: str, change) -> None:
    log = json.loads(run.train_log(tag).read_text())
    change(log)
    write_json_atomic(run.train_log(tag), log)


def test_an_exact_run_is_proven(trained):
    findings = audit(*trained)
    assert [f.tag for f in findings] == ["pi1_phaseA", "pi1_phaseB", "pi2_phaseA", "pi2_phaseB"]
    assert not any(f.faults for f in findings)
    assert sum(f.trained for f in findings) == 2 * 40
    assert render(findings).count("every row exactly once per epoch") == 4


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda log: log["steps"].pop(3), "1 of 6 steps missing"),
        (lambda log: log["steps"].insert(2, log["steps"][1]), "1 logged twice"),
        (lambda log: log["steps"].pop(), "1 of 6 steps missing"),
        (lambda log: log["steps"].reverse(), "0 of 6 steps missing"),
        (
            lambda log: log["steps"][2].update(rows_digest=1),
            "step 2: the ranks fed 2 rows that are not the plan's 2",
        ),
        (lambda log: log["steps"][2].update(examples=3), "step 2: the ranks fed 3 rows"),
        (lambda log: log["meta"].update(plan_hash="other"), "trained by plan other"),
    ],
)
def test_each_kind_of_mismatch_is_found(trained, change, fault):
    recipe, run = trained
    edit(run, "pi1_phaseB", change)
    faulty = [f for f in audit(recipe, run) if f.faults]
    assert [f.tag for f in faulty] == ["pi1_phaseB"] and fault in render(faulty)


def opened_after(log: dict, steps: int) -> None:
    """As if the channel had opened then: the training ended."""
    log["steps"] = log["steps"][:steps]
    log["channel"] = [entry for entry in log["channel"] if entry["step"] < steps]
    log["channel"][-1]["channel"] = 0.95


def test_a_phase_that_ended_when_its_channel_was_open_is_proven(trained):
    recipe, run = trained
    edit(run, "pi1_phaseA", lambda log: opened_after(log, 4))
    finding = audit(recipe, run)[0]
    assert not finding.faults and (finding.steps, finding.trained) == (4, 14)
    assert "every row at most once per epoch" in render([finding])
    assert "the channel reached 0.95 after 4 of 6 steps" in render([finding])


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda log: log["steps"].pop(), "1 of 4 steps missing"),
        (lambda log: log["steps"].pop(1), "1 of 4 steps missing"),
        (lambda log: log["steps"].append({**log["steps"][-1], "step": 4}), "1 behind the end"),
        (lambda log: log["steps"][3].update(rows_digest=1), "step 3: the ranks fed"),
        (lambda log: log["channel"].pop(), "2 of 6 steps missing"),
        (lambda log: log["channel"].pop(0), "not those after which it was due"),
        (lambda log: log["channel"][-1].update(channel=0.85), "2 of 6 steps missing"),
        (lambda log: log["meta"].update(until_channel=0.5), "ended by a channel of 0.5"),
    ],
)
def test_a_gap_is_found_where_a_channel_ended_the_phase(trained, change, fault):
    recipe, run = trained
    edit(run, "pi1_phaseA", lambda log: (opened_after(log, 4), change(log)))
    faulty = [f for f in audit(recipe, run) if f.faults]
    assert [f.tag for f in faulty] == ["pi1_phaseA"] and fault in render(faulty)


def test_a_plan_that_leaves_out_a_row_is_found(trained):
    recipe, run = trained
    path = run.plan_of("pi2_phaseA")
    plan, key = Plan.load(path)
    plan.rows[0] = plan.rows[1]
    plan.save(path, key)
    edit(run, "pi2_phaseA", lambda log: log["meta"].update(plan_hash=plan.hash))
    (finding,) = [f for f in audit(recipe, run) if f.faults]
    assert "epoch 0 of the plan: 1 rows missing, 0 foreign, 1 more than once" in finding.faults


def test_a_phase_without_a_log_is_not_proven(trained):
    recipe, run = trained
    run.train_log("pi2_phaseB").unlink()
    (finding,) = [f for f in audit(recipe, run) if f.faults]
    assert finding.tag == "pi2_phaseB" and finding.faults[0].startswith("not trained")


def test_the_commands_end_with_the_right_codes(trained, tmp_path):
    _, run = trained

    def launch(script: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "launch" / script), *arguments],
            capture_output=True,
            text=True,
        )

    wrong = launch("audit.py", str(tmp_path / "nothing"))
    assert (
        wrong.returncode == 2
        and "expected the directory of a run" in wrong.stderr
        and wrong.stderr.count("\n") == 1
    )
    plan = launch("plan.py", "--world", "2", "--json", "--set", f"run_root={tmp_path}/new")
    assert plan.returncode == 0 and [
        phase["phase"] for phase in json.loads(plan.stdout)["phases"]
    ] == [
        "A",
        "B",
    ]
    assert launch("plan.py", "--world", "0").returncode == 2
