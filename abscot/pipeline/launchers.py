"""Every command line of srun, mpiexec, deepspeed and the site's container, and every variable of
Slurm. The job scripts in slurm/ are the other half; nothing else knows that Slurm exists.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from abscot.common import gpus
from abscot.common.errors import UserError
from abscot.common.process import PARENT
from abscot.common.ranks import CORES_PER_RANK, RANK_VARIABLES, number_of, without_ranks
from abscot.recipe.load import ROOT

LAUNCH = ROOT / "launch"
SHARD = ROOT / "slurm" / "shard.sh"
# After one rank has ended, the others have so long; then Slurm ends the step on all nodes.
LAST_RANK_S = 300
# Whatever the terminal: what a stage prints goes through a pipe, what it writes into files.
UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
SRUN_CORES = "SRUN_CPUS_PER_TASK"  # slurm/job.sh sets it to what the job was given per task
# In lines by which a launcher says no more than that a rank has failed.
LAUNCHERS_WORDS = ("subprocess", "[launch.py", "srun: ")


class Allocation(NamedTuple):
    """Nodes of a Slurm job, and the tasks that srun may start on them: one per GPU."""

    nodes: int
    tasks: int


@dataclass(frozen=True)
class Launch:
    """A launch script, and as how many processes it runs.

    ranks: 0 for a plain process; else started by srun in a Slurm job of several tasks, and by the
    deepspeed launcher anywhere else. The two below matter in a Slurm job of several tasks only.
    """

    script: str
    arguments: tuple[str, ...] = ()
    ranks: int = 0
    mpi: bool = False  # as many MPI ranks as tasks share the work
    gpus_per_engine: int = 0  # an engine on every so many GPUs, each a shard of the work

    def command(self, config: Path, port: int = 29_500) -> list[str]:
        """The command line on this machine, or in this Slurm job; `port`: of the ranks' meeting."""
        script = [str(LAUNCH / self.script), "--recipe", str(config), *self.arguments]
        plain = [*container(), sys.executable, *script]
        job = allocation()
        if self.ranks:
            return self._srun_ranks(plain) if job else self._deepspeed_ranks(script, port)
        if job and self.mpi:
            return self._mpi_ranks(plain, job)
        if job and self.gpus_per_engine:
            return self._srun_engines(plain, job)
        return plain

    def environment(self, command: list[str]) -> dict[str, str]:
        """The environment for `command`: a plain process must not inherit ranks (vllm#1865), a rank
        gets its own from its launcher.
        """
        environ = {**without_ranks(dict(os.environ)), "PYTHONUNBUFFERED": "1", **UTF8}
        if self.ranks and command[0] != "srun":
            environ = _for_deepspeed(environ)
        if command[0] != "srun" and not command[0].endswith("mpiexec"):
            return {**environ, PARENT: str(os.getpid())}  # seen on this node only
        if self.mpi:  # it starts one daemon a node by srun, whose cores are those of all its ranks
            environ.pop(SRUN_CORES, None)
        if self.mpi and os.geteuid() == 0:  # a container: whoever started this has decided that
            environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        if self.ranks:
            meeting = ("MASTER_ADDR", "MASTER_PORT")
            environ |= {name: os.environ[name] for name in meeting if name in os.environ}
        return environ

    def _deepspeed_ranks(self, script: list[str], port: int) -> list[str]:
        """On the GPUs that are visible here: its --num_gpus alone would take the first ones of the
        machine. Raises MachineError where torch cannot use them.
        """
        visible, named = gpus.usable(), gpus.VISIBLE in os.environ
        chosen = ["--num_gpus", str(self.ranks)]
        if visible and named and all(gpu.isdecimal() for gpu in visible):
            chosen = ["--include", f"localhost:{','.join(visible[: self.ranks])}"]
        elif visible and named:  # its --include knows no UUIDs; numbers that it sets are set back
            named_again = f"{gpus.VISIBLE}={','.join(visible[: self.ranks])}"
            script = ["env", named_again, sys.executable, "-u", *script]
            chosen += ["--no_python", "--no_local_rank"]
        launcher = [*container(), beside_python("deepspeed"), *chosen]
        return [*launcher, "--master_port", str(port), *script]

    def _srun_ranks(self, plain: list[str]) -> list[str]:
        return [*srun(self.ranks), f"--wait={LAST_RANK_S}", *plain]

    def _mpi_ranks(self, plain: list[str], job: Allocation) -> list[str]:
        """The wheel's mpiexec starts its daemons with srun; ranks may use all cores of a node."""
        mpiexec = [beside_python("mpiexec"), "--bind-to", "none"]
        return [*mpiexec, "-n", str(job.tasks), *plain]

    def _srun_engines(self, plain: list[str], job: Allocation) -> list[str]:
        per_node = max(1, job.tasks // job.nodes // self.gpus_per_engine)
        shard = ["bash", str(SHARD), str(self.gpus_per_engine)]
        tasks = [*srun(job.nodes * per_node), f"--ntasks-per-node={per_node}"]
        if cores := number_of("SLURM_CPUS_PER_TASK", 0):  # of the job: a task of it is a GPU
            tasks.append(f"--cpus-per-task={cores * (job.tasks // job.nodes // per_node)}")
        return [*tasks, *shard, *plain]


def _for_deepspeed(environ: dict[str, str]) -> dict[str, str]:
    """Which GPUs are meant stands in its command line; where none is, only this word reaches its
    ranks, for whom it sets CUDA_VISIBLE_DEVICES on CPUs too.
    """
    if gpus.hidden():
        return {**environ, gpus.ACCELERATOR: "cpu"}
    return {name: value for name, value in environ.items() if name != gpus.VISIBLE}


def srun(tasks: int) -> list[str]:
    """A task that fails does not end the others: ranks agree on when to stop, and the work of other
    shards is kept.
    """
    return ["srun", f"--ntasks={tasks}", "--kill-on-bad-exit=0"]


def container() -> list[str]:
    """What starts a process in the site's container (slurm/site.sh). Who calls srun stays outside
    of it. Raises UserError where its words cannot be told apart.
    """
    command = os.environ.get("ABSCOT_CONTAINER", "")
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UserError(
            f"ABSCOT_CONTAINER: {command!r}: {error}; mend it in slurm/site.sh"
        ) from None


def beside_python(name: str) -> str:
    """A program of the same virtual environment."""
    return str(Path(sys.executable).with_name(name))


def allocation() -> Allocation | None:
    """The Slurm job that this process may start tasks in; None outside one, in a job of one task
    and inside a task.
    """
    tasks = number_of("SLURM_NTASKS", 1)
    if "SLURM_JOB_ID" not in os.environ or "SLURM_STEP_ID" in os.environ or tasks < 2:
        return None
    return Allocation(max(1, number_of("SLURM_JOB_NUM_NODES", 1)), tasks)


def ranks_to_train_on(wanted: int | None) -> int:
    """wanted: the recipe's train.num_gpus. A rank per task of the Slurm job, or per GPU of this
    machine where there are any.
    """
    if job := allocation():
        return wanted or job.tasks
    here = gpus.count()
    return min(wanted or here, here) if here else wanted or 1


def gpus_here() -> bool:
    """Whether this machine, or each node of the Slurm job, has GPUs to use."""
    return gpus.count() > 0 or number_of("SLURM_GPUS_ON_NODE", 0) > 0


def fewer_ranks(wanted: int | None) -> str | None:
    """A line where this machine has fewer GPUs than `wanted` (train.num_gpus)."""
    ranks = ranks_to_train_on(wanted)
    if wanted is None or ranks >= wanted:
        return None
    return (
        f"train.num_gpus is {wanted}, and the GPUs that are visible here are {ranks}: a rank each"
    )


def job_id() -> str | None:
    """The Slurm job that this process belongs to."""
    return os.environ.get("SLURM_JOB_ID")


def job_restarts() -> int:
    """How often Slurm has queued this job again."""
    return number_of("SLURM_RESTART_COUNT", 0)


def take_ranks_from_slurm() -> None:
    """Under `srun` with a task per rank: RANK and the rest from Slurm's own variables, without ssh
    and without a hostfile. In any Slurm job: how many cores each rank has.

    Raises UserError where the ranks are not told where to meet.
    """
    per_task, on_node, per_node = (
        number_of(f"SLURM_{name}", 0)
        for name in ("CPUS_PER_TASK", "CPUS_ON_NODE", "NTASKS_PER_NODE")
    )
    if cores := per_task or (per_node and on_node // per_node):
        os.environ[CORES_PER_RANK] = str(cores)
    if per_node:
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(per_node))
    if "RANK" in os.environ or number_of("SLURM_STEP_NUM_TASKS", 1) < 2:
        return
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
    }
    missing = [name for name in RANK_VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: not set; slurm/round.sbatch exports it from the job's first "
            "node before srun"
        )


class MpiLaunch(NamedTuple):
    """What the launcher of an MPI program says before MPI is imported."""

    size: int = 1
    rank: int = 0
    local_size: int = 1


def mpi_launch() -> MpiLaunch:
    """Ranks as mpiexec (Open MPI, MPICH) or srun has set them; one rank without a launcher."""

    def first(default: int, *names: str) -> int:
        return number_of(next((name for name in names if os.environ.get(name)), names[0]), default)

    return MpiLaunch(
        first(1, "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"),
        first(0, "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"),
        first(1, "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"),
    )
