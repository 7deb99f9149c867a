"""A private Slurm cluster of two nodes on this machine: own munge key and socket, own ports, own
state directory.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from abscot.recipe.load import ROOT

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
NODES, CPUS_A_NODE = ("n1", "n2"), 2

CONFIG = """
ClusterName=abscot
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={root}/munge.socket,cred_expire=10
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
SwitchType=switch/none
MpiDefault=none
JobRequeue=1
ReturnToService=2
KillWait=10
SlurmdTimeout=10
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """The running cluster. Jobs are submitted from the project folder, as a user would."""

    def __init__(self, root: Path):
        self.root = root
        self.daemons: dict[
            str, subprocess.Popen
        ] = {}  # munged, slurmctld and a slurmd a node, by the node's name
        self.environ = {**os.environ, "SLURM_CONF": str(root / "slurm.conf"), "PATH": PATH}

    def start(self, name: str) -> None:
        """Starts a daemon, for the first time or again."""
        files = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        munge = [f"--{file}={self.root}/munge.{file}" for file in files]
        command = {
            "munged": ["munged", "--foreground", "--force", *munge],
            "slurmctld": ["slurmctld", "-D"],
        }.get(name, ["slurmd", "-D", "-N", name])
        with open(self.root / "daemons.log", "a") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environ, stdout=log, stderr=log, start_new_session=True
            )

    def end(self, name: str, kill: bool = False) -> None:
        process = self.daemons.pop(name)
        process.kill() if kill else process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def call(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environ, cwd=ROOT, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip()

    def sbatch(self, *arguments: str) -> str:
        """Submits a job whose output goes to job_log(); returns its number."""
        return self.call("sbatch", "--parsable", f"--output={self.root}/job-%j.log", *arguments)

    def tasks(self, job: str) -> dict[str, dict[str, str]]:
        """Array task -> what `scontrol show job` says of it."""
        lines = self.call("scontrol", "--oneliner", "show", "job", job).splitlines()
        fields = [
            dict(word.partition("=")[::2] for word in line.split() if "=" in word) for line in lines
        ]
        return {known.get("ArrayTaskId", "0"): known for known in fields}

    def job_log(self, task: dict[str, str]) -> str:
        return (self.root / f"job-{task['JobId']}.log").read_text()

    def wait(self, job: str, timeout: float) -> dict[str, dict[str, str]]:
        """The job's tasks, once all have ended. Raises TimeoutError."""
        alive = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
        until(
            lambda: not any(task["JobState"] in alive for task in self.tasks(job).values()), timeout
        )
        return self.tasks(job)


def missing() -> list[str]:
    """Programs that a private cluster needs and that are not installed."""
    return [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=PATH)]


@contextmanager
def cluster(root: Path) -> Iterator[Cluster]:
    """Starts the daemons, and ends them, each by its process id, with every job that is left."""
    root.chmod(0o700)
    (root / "state").mkdir()
    (root / "munge.key-file").write_bytes(os.urandom(128))
    (root / "munge.key-file").chmod(0o600)
    ports = free_ports(1 + len(NODES))
    host = socket.gethostname().partition(".")[0]
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS_A_NODE}"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    config = CONFIG.format(host=host, port=ports[0], user=user, root=root, nodes="\n".join(nodes))
    (root / "slurm.conf").write_text(config)
    started = Cluster(root)
    try:
        started.start("munged")
        until(lambda: (root / "munge.socket").exists())
        for name in ("slurmctld", *NODES):
            started.start(name)
        idle = ("sinfo", "--noheader", "--states=idle", "--format=%D")
        until(lambda: started.call(*idle, check=False) == str(len(NODES)))
        try:
            yield started
        finally:
            started.call("scancel", f"--user={user}", check=False)
            until(lambda: not started.call("squeue", "--noheader", check=False))
    finally:
        for name in reversed(list(started.daemons)):
            started.end(name)


def until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s in vain")
        time.sleep(0.2)


def free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
