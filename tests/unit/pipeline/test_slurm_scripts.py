"""The scripts in slurm/, without a cluster."""

import os
import subprocess

from abscot.recipe.load import ROOT


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
        "--array=0-3 --gpus-per-node=1 slurm/eval.sbatch" in jobs[4]
        and done.stdout.count("    cell ") == 4
    )
    assert "    cell 3  final math500 seed 0\n" in done.stdout
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
