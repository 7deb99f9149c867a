"""The jobs of slurm/ on a private cluster of two nodes; the submission of a large run as it would
be printed.
"""

import os
import shutil
import subprocess

import pytest
import slurm_cluster
from conftest import overrides_of

from abscot.common import files
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import claim

ROUND = "slurm/round.sbatch"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if absent := slurm_cluster.missing():
        pytest.skip(f"{', '.join(absent)} not installed (Debian: apt install slurm-wlm munge)")
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.mark.slurm
def test_a_task_without_the_round_before_fails_in_one_line_and_leaves_nothing(cluster, tmp_path):
    task = cluster.wait(
        cluster.sbatch("--array=2", *TWO_NODES, ROUND, *overrides_of(tmp_path)), 60
    )["2"]
    assert (task["JobState"], task["ExitCode"]) == ("FAILED", "2:0")
    log = cluster.job_log(task)
    assert (
        log.count("\n") == 1 and "shards is missing" in log and "launch/round.py --round 0" in log
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slurm
def test_a_round_that_fails_cancels_the_rounds_after_it(cluster, tmp_path):
    job = cluster.sbatch("--array=1-3%1", *TWO_NODES, ROUND, *overrides_of(tmp_path, "rounds=3"))
    states = {number: task["JobState"] for number, task in cluster.wait(job, 90).items()}
    assert states == {"1": "FAILED", "2": "CANCELLED", "3": "CANCELLED"}


@pytest.mark.slurm
def test_a_round_over_two_nodes_stopped_and_queued_again_ends_with_the_same_model(
    cluster, small_run, tmp_path, monkeypatch
):
    """The first round of small_run again, on its data: two ZeRO-3 ranks under srun, a vLLM engine
    on each node. `env` stands for the site's container: it too starts a command as its own process.
    """
    monkeypatch.setitem(cluster.environ, "ABSCOT_CONTAINER", "env INSIDE=image")
    overrides = overrides_of(tmp_path, "traces.shards=2")
    run = claim(load_recipe(None, overrides[1::2]))
    for made in ("world", "base", "shards"):
        shutil.copytree(small_run.run.root / made, run.root / made)
    job = cluster.sbatch("--array=1", *TWO_NODES, ROUND, *overrides)
    log = run.logs / "train_pi1_phaseA.log"
    slurm_cluster.until(lambda: log.is_file() and "parameters trained" in log.read_text(), 300)
    cluster.call("scancel", "--signal=USR1", "--batch", f"{job}_1")
    task = cluster.wait(job, 600)["1"]
    assert (task["JobState"], task["Restarts"]) == ("COMPLETED", "1"), cluster.job_log(task)
    made, expected = (files.fingerprint(r.root / "round1") for r in (run, small_run.run))
    assert made == expected, cluster.job_log(task)
    logs = [log.read_text() for log in run.logs.glob("*.log")]
    assert len(logs) == 4 and all(" env INSIDE=image " in log.partition("\n")[0] for log in logs)


@pytest.mark.slurm
def test_a_job_that_is_never_done_gives_up_after_its_last_restart(cluster, tmp_path):
    """A command that always asks to be started again, in place of a training."""
    script = tmp_path / "again.sbatch"
    script.write_text(
        "#!/usr/bin/env bash\n#SBATCH --requeue --open-mode=append\nset -euo pipefail\n"
        'source "$SLURM_SUBMIT_DIR/slurm/job.sh"\nABSCOT_MAX_RESTARTS=0\n'
        'requeueing bash -c "exit 75"\n'
    )
    task = cluster.wait(cluster.sbatch(str(script)), 60)["0"]
    assert (task["JobState"], task["ExitCode"]) == ("FAILED", "1:0")
    assert "not done after 0 restarts" in cluster.job_log(task)


def test_a_shard_takes_its_own_gpus_of_the_node():
    command = [
        "bash",
        str(ROOT / "slurm/shard.sh"),
        "2",
        "bash",
        "-c",
        'echo "$CUDA_VISIBLE_DEVICES" "$@"',
        "-",
    ]
    ranks = {"SLURM_LOCALID": "1", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}
    environ = {**os.environ, **ranks, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.stdout == "2,3 --shard 5 --of 8\n", done.stderr


def test_the_submission_of_eight_nodes_is_printed_whole():
    recipe = "launch/recipes/qwen3-4b-full-600k.yaml"
    flags = ["--nodes", "8", "--gpus-per-node", "8", "--set", "name=big", "--dry-run"]
    done = subprocess.run(
        ["bash", "slurm/submit.sh", recipe, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    jobs = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [job.partition(":")[0] for job in jobs] == [
        "prepare",
        "round 1",
        "round 2",
        "round 3",
        "eval",
        "report",
    ]
    for before, job in zip(jobs, jobs[1:], strict=False):
        assert (
            f"--dependency=afterok:<{before.partition(':')[0]}>" in job and "--set name=big" in job
        )
    assert "run  mpiexec --bind-to none -n 64 python" in done.stdout
    for number in (1, 2, 3):
        assert (
            f"--array={number} --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 slurm/round.sbatch"
            in jobs[number]
        )
    runs = [
        line.split()[1:]
        for line in done.stdout.splitlines()
        if line.startswith("    " * 2 + "run  ")
    ]
    tasks = [words[1] for words in runs if words[0] == "srun"]
    assert tasks == ["--ntasks=64"] * 12  # two trace sets and two trainings a round
    assert (
        "--array=0-7 --gpus-per-node=1 slurm/eval.sbatch" in jobs[4]
        and done.stdout.count("    cell ") == 8
    )
    assert "    cell 7  final gsm8k seed 0\n" in done.stdout
    walltimes = [
        line.split("for  ")[1]
        for line in done.stdout.splitlines()
        if line.startswith("        for  ")
    ]
    assert len(walltimes) == 12 and walltimes[0] == "minutes: random traces"
    assert all("on 64 x H100 80 GB at MFU 0.40" in line for line in walltimes[1:])
    assert sum("a checkpoint every 30 minutes" in line for line in walltimes) == 6
    assert not (ROOT / "runs" / "big").exists()


def test_submit_refuses_what_it_does_not_know():
    done = subprocess.run(
        ["bash", "slurm/submit.sh", "--nodse", "8"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--nodse" in done.stderr
