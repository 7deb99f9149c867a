"""The scripts in slurm/, without a cluster."""

import os
import re
import shutil
import subprocess

import pytest

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
            f"--array={number} --nodes=8 --ntasks-per-node=8 --cpus-per-task=8 --mem=0 "
            "--gpus-per-node=8 slurm/round.sbatch" in jobs[number]
        )
    runs = [
        line.split()[1:]
        for line in done.stdout.splitlines()
        if line.startswith("    " * 2 + "run  ")
    ]
    tasks = [words[1] for words in runs if words[0] == "srun"]
    assert tasks == ["--ntasks=64"] * 12  # two trace sets and two trainings a round
    assert (
        "--array=0-3 --gpus-per-node=1 --cpus-per-task=8 --mem=65536M slurm/eval.sbatch" in jobs[4]
        and done.stdout.count("    cell ") == 4
    )
    assert "    cell 3  final math500 seed 0\n" in done.stdout
    walltimes = [
        line.split("for  ")[1]
        for line in done.stdout.splitlines()
        if line.startswith("        for  ")
    ]
    assert len(walltimes) == 12 and walltimes[0] == "minutes: random traces"
    assert all("on 64 x H100 80 GB" in line for line in walltimes[1:])
    assert sum("at MFU 0." in line for line in walltimes) == 6
    assert sum("a checkpoint every 30 minutes" in line for line in walltimes) == 6
    assert not (ROOT / "runs" / "big").exists()


@pytest.fixture
def submitted(tmp_path):
    """What submit.sh prints of each job, without the project's Python: a recipe of one round whose
    engines have two GPUs each.
    """
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = - ] && echo 1 2 || echo 0 cell\n')
    python.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def submit(*options: str) -> dict[str, str]:
        command = ["bash", str(tmp_path / "slurm/submit.sh"), "my.yaml", "--dry-run", *options]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line[0] != " "]
        return {name: rest for name, _, rest in (line.partition(":") for line in lines)}

    return submit


@pytest.mark.parametrize(
    "options, of_round, of_engine",
    [
        ("", "--ntasks-per-node=2", ""),
        ("--mem 6G", "--ntasks-per-node=2 --mem=6G", "--mem=6G"),
        (
            "--gpus-per-node 4",
            "--ntasks-per-node=4 --cpus-per-task=8 --mem=0",
            "--gpus-per-node=2 --cpus-per-task=16 --mem=131072M",
        ),
        (
            "--gpus-per-node 8 --cpus-per-gpu 12 --mem 960G",
            "--ntasks-per-node=8 --cpus-per-task=12 --mem=960G",
            "--gpus-per-node=2 --cpus-per-task=24 --mem=245760M",
        ),
        (
            "--gpus-per-node 4 --mem 400000",
            "--ntasks-per-node=4 --cpus-per-task=8 --mem=400000M",
            "--gpus-per-node=2 --cpus-per-task=16 --mem=200000M",
        ),
    ],
    ids=["CPUs", "CPUs, memory", "defaults", "said", "megabytes"],
)
def test_every_job_asks_for_cpus_and_memory(submitted, options, of_round, of_engine):
    jobs = submitted(*options.split())
    assert f"--nodes=1 {of_round} slurm/prepare.sbatch" in jobs["prepare"]
    gpus = re.search(r"--gpus-per-node (\d)", options)
    many = f"--nodes=1 {of_round}" + (f" --gpus-per-node={gpus[1]}" if gpus else "")
    assert f"{many} slurm/round.sbatch" in jobs["round 1"]
    for name in ("eval", "report"):
        behind_dependency = jobs[name].partition("> ")[2].removeprefix("--array=0-0 ")
        assert behind_dependency.partition(f"slurm/{name}.sbatch")[0].strip() == of_engine


@pytest.mark.parametrize(
    "options, said",
    [
        ("--mem 5X", "--mem 5X"),
        ("--mem all", "0: all of a node"),
        ("--cpus-per-gpu 8", "--gpus-per-node"),
        ("--gpus-per-node 8 --cpus-per-gpu 0", "--cpus-per-gpu 0"),
    ],
)
def test_memory_and_cpus_that_cannot_be_are_refused(options, said):
    command = ["bash", "slurm/submit.sh", "tiny-cpu", "--dry-run", *options.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr


def test_srun_hears_of_cpus_where_they_are_known_and_of_nothing_else(tmp_path):
    """job.sh as every job reads it, from the project folder."""
    script = "source slurm/job.sh; env | grep ^SRUN_ || true"
    environ = {**os.environ, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "1"}
    for given, expected in (({}, ""), ({"SLURM_CPUS_PER_TASK": "12"}, "SRUN_CPUS_PER_TASK=12\n")):
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=environ | given, capture_output=True, text=True
        )
        assert done.stdout == expected, done.stderr


def test_submit_refuses_what_it_does_not_know():
    done = subprocess.run(
        ["bash", "slurm/submit.sh", "--nodse", "8"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--nodse" in done.stderr
