"""A private Slurm cluster of two nodes: rounds that wait, fail, stop and go on."""

import shutil

import pytest

from abscot.common import files
from abscot.recipe.load import load_recipe
from abscot.recipe.run import claim
from kit import slurm_cluster
from kit.small_run import overrides_of

pytestmark = pytest.mark.slurm

ROUND = "slurm/round.sbatch"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if absent := slurm_cluster.missing():
        pytest.skip(f"{', '.join(absent)} not installed (Debian: apt install slurm-wlm munge)")
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


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


def test_a_round_that_fails_cancels_the_rounds_after_it(cluster, tmp_path):
    job = cluster.sbatch("--array=1-3%1", *TWO_NODES, ROUND, *overrides_of(tmp_path, "rounds=3"))
    states = {number: task["JobState"] for number, task in cluster.wait(job, 90).items()}
    assert states == {"1": "FAILED", "2": "CANCELLED", "3": "CANCELLED"}


def test_a_round_over_two_nodes_stopped_and_queued_again_ends_with_the_same_model(
    cluster, small_run, tmp_path, monkeypatch
):
    """The first round of small_run again, on its data: two ZeRO-3 ranks under srun, a shard of
    the traces on each node. `env` stands for the site's container: it too starts a command as its
    own process.
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
    assert len(logs) == 5 and all(" env INSIDE=image " in log.partition("\n")[0] for log in logs)


def test_a_job_that_is_never_done_gives_up_after_its_last_restart(cluster, tmp_path):
    """A command that always asks to be started again, in place of a training. Before it the tasks
    of srun say how many CPUs they have: those that the job asked for.
    """
    script = tmp_path / "again.sbatch"
    script.write_text(
        "#!/usr/bin/env bash\n#SBATCH --requeue --open-mode=append\nset -euo pipefail\n"
        'source "$SLURM_SUBMIT_DIR/slurm/job.sh"\nABSCOT_MAX_RESTARTS=0\n'
        "srun --ntasks=2 bash -c 'echo has $SLURM_CPUS_PER_TASK of $SLURM_CPUS_ON_NODE'\n"
        'requeueing bash -c "exit 75"\n'
    )
    task = cluster.wait(cluster.sbatch(*TWO_NODES, "--cpus-per-task=2", str(script)), 60)["0"]
    assert (task["JobState"], task["ExitCode"]) == ("FAILED", "1:0")
    assert cluster.job_log(task).count("has 2 of 2\n") == 2
    assert "not done after 0 restarts" in cluster.job_log(task)
