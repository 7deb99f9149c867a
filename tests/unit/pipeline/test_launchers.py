"""Which GPUs and cores the ranks get. DeepSpeed's own launcher says which GPUs."""

import os
import sys
import time
from types import SimpleNamespace

import pytest
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from deepspeed.launcher import launch as node_launcher
from deepspeed.launcher import runner

from abscot.common import gpus, ranks
from abscot.common.errors import MachineError, UserError
from abscot.method.lineage import trainings
from abscot.pipeline import fan_out, launchers
from abscot.pipeline.launchers import Launch, fewer_ranks, ranks_to_train_on
from abscot.pipeline.stages import train_stage
from abscot.recipe.load import load_recipe
from abscot.recipe.run import Run


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SRUN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(ranks.CORES_PER_RANK, raising=False)


class Ended:
    """A process that was not started."""

    pid, returncode = 1, 0

    def poll(self) -> int:
        return 0

    wait = poll


def ranks_of(number: int, monkeypatch, tmp_path) -> list[SimpleNamespace]:
    """The command and the environment of each rank that DeepSpeed's runner and its launcher on the
    node start for a training of `number` ranks.
    """
    launch = Launch("train.py", ("--phase", "A"), number)
    command = launch.command(tmp_path / "config.yaml", port=29_511)
    environ, started = launch.environment(command), []

    def start(command, env, **_):
        started.append(SimpleNamespace(command=command, env=dict(env)))
        return Ended()

    cpu = environ.get(gpus.ACCELERATOR) == "cpu"
    accelerator = CPU_Accelerator() if cpu else CUDA_Accelerator()
    for module in (runner, node_launcher):
        monkeypatch.setattr(module, "get_accelerator", lambda: accelerator)
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(Popen=start))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert command[0].endswith("/deepspeed")
    with monkeypatch.context() as inside:
        inside.setattr(os, "environ", environ)
        runner.main(command[1:])
        on_node = started.pop()
        inside.setattr(os, "environ", on_node.env)
        inside.setattr(sys, "argv", on_node.command[3:])  # behind python -u -m
        node_launcher.main()
    return started


@pytest.mark.parametrize(
    "said, number, expected",
    [("4,5", 2, "4,5"), ("4,5", 1, "4"), ("5,4,7", 2, "4,5"), (None, 2, "0,1"), ("3", 1, "3")],
)
def test_deepspeed_starts_the_ranks_on_the_gpus_that_are_visible(
    machine, monkeypatch, tmp_path, said, number, expected
):
    machine(8, **({} if said is None else {gpus.VISIBLE: said}))
    started = ranks_of(number, monkeypatch, tmp_path)
    assert [rank.env["LOCAL_RANK"] for rank in started] == [str(i) for i in range(number)]
    assert {rank.env[gpus.VISIBLE] for rank in started} == {expected}
    assert all("train.py" in " ".join(rank.command) for rank in started)


def test_gpus_that_are_named_by_their_uuids_reach_the_ranks(machine, monkeypatch, tmp_path):
    """Its own options know numbers alone."""
    named = "GPU-8f6d-1,GPU-8f6d-2"
    machine(8, **{gpus.VISIBLE: named})
    for rank in ranks_of(2, monkeypatch, tmp_path):
        assert rank.command[:2] == ["env", f"{gpus.VISIBLE}={named}"]
        assert rank.command[2:4] == [sys.executable, "-u"] and "--phase" in rank.command


def test_ranks_on_the_cpu_are_told_so_by_what_deepspeed_leaves_alone(
    machine, monkeypatch, tmp_path
):
    """It gives ranks on CPUs numbers of GPUs too."""
    machine(8, **{gpus.VISIBLE: ""})
    started = ranks_of(2, monkeypatch, tmp_path)
    assert len(started) == 2
    for rank in started:
        assert rank.env[gpus.VISIBLE] == "0,1" and rank.env[gpus.ACCELERATOR] == "cpu"
        monkeypatch.setattr(os, "environ", rank.env)
        gpus.hide_where_asked()
        assert rank.env[gpus.VISIBLE] == ""


def test_no_rank_starts_where_cuda_does_not_work(machine, tmp_path):
    machine(8, built=None)
    with pytest.raises(MachineError, match="ABSCOT_FLAVOUR=gpu"):
        Launch("train.py", (), 8).command(tmp_path)


@pytest.mark.parametrize(
    "number, said, wanted, expected",
    [
        (8, None, None, 8),
        (8, "4,5", None, 2),
        (1, None, 2, 1),  # the tiny recipe on a machine of one GPU
        (8, None, 2, 2),
        (8, "", 2, 2),  # on the CPU any number
        (8, "", None, 1),
        (0, None, 2, 2),
        (0, None, None, 1),
    ],
)
def test_a_rank_trains_per_gpu_that_is_visible(machine, number, said, wanted, expected):
    machine(number, **({} if said is None else {gpus.VISIBLE: said}))
    assert ranks_to_train_on(wanted) == expected
    fewer = wanted is not None and expected < wanted
    assert bool(fewer_ranks(wanted)) == fewer and (not fewer or "is 2" in fewer_ranks(wanted))


def test_the_tiny_recipe_trains_on_the_one_gpu_of_a_machine(machine, tmp_path):
    recipe = load_recipe(None, [f"run_root={tmp_path}"])
    machine(1)
    assert recipe.train.num_gpus == 2
    assert train_stage(trainings(recipe, Run.of(recipe))[0]).launch.ranks == 1


def test_engines_share_the_gpus_that_are_visible(machine, tmp_path):
    script = (
        "import os, pathlib, sys; "
        "pathlib.Path(sys.argv[1], sys.argv[3]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    machine(8, **{gpus.VISIBLE: "2,3,6,7"})
    assert fan_out.generate_on_this_machine(command, 2, 2) == 0
    assert [(tmp_path / name).read_text() for name in "01"] == ["2,3", "6,7"]
    assert fan_out.processes_for_grounding(1) == 4
    with pytest.raises(UserError, match="inference.tensor_parallel is 8: expected at most 4"):
        fan_out.generate_on_this_machine(command, 1, 8)
    machine(8, driver="535.54.03", runs=12_020)
    with pytest.raises(MachineError, match="needs driver 580"):
        fan_out.generate_on_this_machine(command, 2, 1)


def slurm(monkeypatch, **said) -> None:
    for name, value in said.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def test_an_engine_on_two_gpus_has_the_cores_of_two_tasks(monkeypatch, tmp_path):
    slurm(monkeypatch, JOB_ID=1, NTASKS=16, JOB_NUM_NODES=2)
    launch = Launch("traces.py", gpus_per_engine=2)
    assert not [word for word in launch.command(tmp_path) if word.startswith("--cpus-per-task")]
    slurm(monkeypatch, CPUS_PER_TASK=8)
    command = launch.command(tmp_path)
    assert command[:2] == ["srun", "--ntasks=8"] and "--cpus-per-task=16" in command


def test_the_daemons_of_mpiexec_are_not_held_to_the_cores_of_one_task(monkeypatch, tmp_path):
    slurm(monkeypatch, JOB_ID=1, NTASKS=16, JOB_NUM_NODES=2)
    monkeypatch.setenv("SRUN_CPUS_PER_TASK", "8")
    for launch, kept in (
        (Launch("prepare.py", mpi=True), False),
        (Launch("train.py", (), 16), True),
    ):
        environ = launch.environment(launch.command(tmp_path))
        assert ("SRUN_CPUS_PER_TASK" in environ) == kept


@pytest.mark.parametrize(
    "said, cores",
    [
        ({"CPUS_PER_TASK": 12, "CPUS_ON_NODE": 96, "NTASKS_PER_NODE": 8}, 12),
        ({"CPUS_ON_NODE": 96, "NTASKS_PER_NODE": 8}, 12),
        ({"CPUS_ON_NODE": 4, "NTASKS_PER_NODE": 8}, None),
        ({"CPUS_ON_NODE": 96}, None),
    ],
    ids=["said", "its share", "fewer than ranks", "unknown"],
)
def test_a_rank_knows_its_cores(monkeypatch, said, cores):
    slurm(monkeypatch, **said)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    launchers.take_ranks_from_slurm()
    assert ranks.cores_per_rank() == (cores or max(1, (os.cpu_count() or 1) // 8))
