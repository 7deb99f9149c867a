"""Fault drills on a private Slurm cluster: whatever is killed, the round ends, with the very same
model.

  python tests/drills/slurm_drills.py [DRILL ..] [--dir DIR]   all: about half an hour on two cores

The reference runs without Slurm. `calm` and `three_rounds` are arrays over two nodes, undisturbed;
each other drill disturbs one round. All must end with the weights of the reference. Ends with one
line of JSON: drill -> what happened.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # a script: the kit lies beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from abscot.common import files
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run, claim
from kit import slurm_cluster
from kit.slurm_cluster import Cluster, until

KEYS = [
    "world.rows=96",
    "world.heldout=8",
    "world.base_steps=2",
    "eval.modes=[]",
    "eval.base_modes=[]",
    "traces.sources={A: [grounded], B: [model]}",
    "traces.probe_prompts=2",
    "traces.shards=2",
    "inference.chunk_tokens=7200",  # two chunks: a shard of the traces on each node
    "train.num_gpus=2",
    "train.global_batch_examples=16",
    "train.phase_epochs={A: 10, B: 1}",  # long enough to be met at work
    "train.channel_rows=0",
    "train.checkpoint_every_steps=6",
]
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
DRILL_S = 600
IN_TRAINING = ("train_pi1_phaseA", "steps,")  # a stage, and what its log says once it is under way


def overrides(root: Path, name: str, rounds: int) -> list[str]:
    return [
        w
        for key in (f"run_root={root}", f"name={name}", f"rounds={rounds}", *KEYS)
        for w in ("--set", key)
    ]


class Drill:
    """One run directory whose first stages are done, and what may be done to its round."""

    def __init__(self, cluster: Cluster, root: Path, prepared: Run, name: str, rounds: int):
        self.cluster, self.name = cluster, name
        self.overrides, self.rounds, self.prepared = overrides(root, name, rounds), rounds, prepared
        self.run = claim(load_recipe(None, self.overrides[1::2]))
        for made in (prepared.world, prepared.base, prepared.shards):
            shutil.copytree(made, self.run.root / made.name)
        self.hits = 0

    def submit(self, *flags: str) -> str:
        return self.cluster.sbatch(
            f"--array=1-{self.rounds}%1", *TWO_NODES, *flags, "slurm/round.sbatch", *self.overrides
        )

    def state(self, stage: str) -> dict:
        file = self.run.logs / f"{stage}.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def under_way(self, stage: str, word: str = "") -> None:
        """Returns when the stage runs and its log, since its last start, has `word`."""

        def now() -> bool:
            log = self.run.logs / f"{stage}.log"
            return (
                self.state(stage).get("state") == "running"
                and log.is_file()
                and word in log.read_text().split("--- ")[-1]
            )

        until(now, DRILL_S)

    def requeue(self, job: str) -> None:
        self.cluster.call("scontrol", "requeue", f"{job}_1")
        self.hits += 1

    def finish(self, job: str) -> None:
        ended = self.cluster.wait(job, DRILL_S)
        states = {number: task["JobState"] for number, task in ended.items()}
        if set(states.values()) != {"COMPLETED"}:
            logs = "\n".join(self.cluster.job_log(task)[-2000:] for task in ended.values())
            raise RuntimeError(f"{self.name}: {states}\n{logs}")


def calm(drill: Drill) -> None:
    drill.finish(drill.submit())


def three_rounds(drill: Drill) -> None:
    job = drill.submit()
    drill.finish(job)
    tasks = drill.cluster.tasks(job)
    began = [tasks[number]["StartTime"] for number in ("1", "2", "3")]
    assert began == sorted(began), began


def requeued_in_traces(drill: Drill) -> None:
    job = drill.submit()
    drill.under_way("traces_pi1_phaseB")
    time.sleep(3)
    drill.requeue(job)
    drill.finish(job)


def requeued_in_training(drill: Drill) -> None:
    job = drill.submit()
    for _ in range(2):
        drill.under_way(*IN_TRAINING)
        drill.requeue(job)
        until(lambda: drill.state(IN_TRAINING[0]).get("restarts", 0) >= drill.hits, DRILL_S)
    drill.finish(job)


def requeued_in_export(drill: Drill) -> None:
    job = drill.submit()
    export = drill.run.checkpoints("pi1_phaseA")
    while not any(export.glob(".export.partial")) and not (export / "export").exists():
        time.sleep(0.002)
    drill.requeue(job)
    drill.finish(job)


def asked_to_stop(drill: Drill) -> None:
    job = drill.submit()
    drill.under_way(*IN_TRAINING)
    drill.cluster.call("scancel", "--signal=USR1", "--batch", f"{job}_1")
    until(lambda: drill.state(IN_TRAINING[0])["state"] == "stopped", 60)
    drill.hits += 1
    drill.finish(job)


def time_limit_too_short(drill: Drill) -> None:
    # Slurm may signal a little earlier than asked
    job = drill.submit("--time=2", "--signal=B:USR1@70")
    drill.finish(job)
    drill.hits = drill.state("train_pi1_phaseB")["restarts"]
    assert drill.hits, "the round was done within the limit"


def rank_killed(drill: Drill) -> None:
    job = drill.submit()
    drill.under_way(*IN_TRAINING)
    os.kill(rank_pid(drill.run, rank=1), signal.SIGKILL)
    drill.hits += 1
    drill.finish(job)


def rank_pid(run: Run, rank: int) -> int:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environ = (
                (process / file).read_bytes().split(b"\0") for file in ("cmdline", "environ")
            )
        except OSError:
            continue
        if (
            f"SLURM_PROCID={rank}".encode() in environ
            and b"--phase" in command
            and str(run.config).encode() in command
        ):
            return int(process.name)
    raise RuntimeError(f"no rank {rank} of {run.root}")


def rank_hung(drill: Drill) -> None:
    """A rank stands still, and the other waits for it for ever: hang_minutes ends the step on both
    nodes.
    """
    drill.overrides += ["--set", "hang_minutes=0.75"]
    job = drill.submit()
    drill.under_way(*IN_TRAINING)
    os.kill(rank_pid(drill.run, rank=1), signal.SIGSTOP)
    drill.hits += 1
    until(lambda: "hang_minutes" in (drill.state(IN_TRAINING[0]).get("error") or ""), DRILL_S)
    drill.finish(job)


def node_down_and_back(drill: Drill) -> None:
    job = drill.submit()
    drill.under_way(*IN_TRAINING)
    drill.cluster.end("n2", kill=True)
    os.kill(rank_pid(drill.run, rank=1), signal.SIGKILL)  # what runs on a node dies with it
    down = ("sinfo", "--noheader", "--nodes=n2", "--format=%T")
    until(lambda: "down" in drill.cluster.call(*down), 120)
    drill.hits += 1
    drill.cluster.start("n2")
    drill.finish(job)


def controller_restarted(drill: Drill) -> None:
    job = drill.submit()
    drill.under_way(*IN_TRAINING)
    drill.cluster.end("slurmctld", kill=True)
    time.sleep(3)
    drill.cluster.start("slurmctld")
    until(lambda: drill.cluster.call("squeue", "--noheader", check=False), 60)
    drill.hits += 1
    drill.finish(job)


def submitted_twice(drill: Drill) -> None:
    """The second array has the nodes' other CPUs; it finds a live owner and stops."""
    job = drill.submit()
    drill.under_way(*IN_TRAINING)
    second = drill.cluster.wait(drill.submit(), DRILL_S)["1"]
    log = drill.cluster.job_log(second)
    assert second["ExitCode"] == "2:0" and "another process works on this run" in log, log
    drill.hits += 1
    drill.finish(job)


def disk_full_in_checkpoint(drill: Drill) -> None:
    """The checkpoints lie on a file system that is full for a while. Needs root, to mount it."""
    folder = drill.run.checkpoints("pi1_phaseA")
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    try:
        filler = folder / "filler"
        filler.write_bytes(bytes(64 * 2**20 - 8 * 4096))
        ended = drill.cluster.wait(drill.submit(), DRILL_S)["1"]
        assert ended["ExitCode"] == "2:0", ended  # it needs a person
        assert "No space left" in drill.state(IN_TRAINING[0])["error"], drill.state(IN_TRAINING[0])
        assert not any(folder.glob(".step_*")), "what was half-written takes room"
        filler.unlink()
        drill.hits += 1
        drill.finish(drill.submit())
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def evaluation_cell_killed(drill: Drill) -> None:
    """2 models x 2 seeds, a task each, one killed and requeued; then the dependent job that puts
    them together.
    """
    shutil.copytree(drill.prepared.root / "final", drill.run.root / "final")
    grid = drill.run.root / "grid.yaml"
    grid.write_text("{models: [base, final], benchmarks: [world], seeds: 2}")
    drill.cluster.environ["GRID"] = str(grid)
    sampled = [
        "--set",
        "eval.modes=[abstract]",
        "--set",
        "eval.base_modes=[no_cot]",
        "--set",
        "eval.answer_temperature=1.0",
    ]
    job = drill.cluster.sbatch("--array=0-3%2", "slurm/eval.sbatch", *drill.overrides, *sampled)
    until(lambda: any(drill.run.results.glob(".*_base_*.0.partial")), DRILL_S)
    drill.cluster.call("scontrol", "requeue", f"{job}_0")
    drill.hits += 1
    report = drill.cluster.sbatch(
        f"--dependency=afterok:{job}", "slurm/report.sbatch", *drill.overrides, *sampled
    )
    drill.finish(report)
    for name in ("no_cot_base_world", "abstract_final_world"):
        rows = [
            json.loads(line)
            for line in (drill.run.results / f"{name}.jsonl").read_text().splitlines()
        ]
        answered = sorted((row["id"], row["sample"]) for row in rows)
        assert answered == sorted((f"world/heldout-{i}", s) for i in range(8) for s in (0, 1)), (
            answered
        )
    assert not any(drill.run.results.glob(".*.partial"))


def prepared_by_mpi(drill: Drill) -> None:
    """The base and the shards too are made on the cluster, by MPI ranks on both nodes."""
    for made in (drill.run.base, drill.run.shards):
        shutil.rmtree(made)
    drill.finish(
        drill.cluster.sbatch(
            "--nodes=2", "--ntasks-per-node=2", "slurm/prepare.sbatch", *drill.overrides
        )
    )
    log = (drill.run.logs / "prepare.log").read_text()
    if "4 ranks" not in log:
        raise RuntimeError(f"prepare did not run on 4 ranks:\n{log[-1000:]}")
    drill.finish(drill.submit())


DRILLS: dict[str, Callable[[Drill], None]] = {
    f.__name__: f
    for f in (
        calm,
        three_rounds,
        requeued_in_traces,
        requeued_in_training,
        requeued_in_export,
        asked_to_stop,
        time_limit_too_short,
        rank_killed,
        rank_hung,
        node_down_and_back,
        controller_restarted,
        submitted_twice,
        disk_full_in_checkpoint,
        evaluation_cell_killed,
        prepared_by_mpi,
    )
}


def alone(root: Path, rounds: int) -> Run:
    """The rounds without Slurm, on as many ranks."""
    name = f"alone{rounds}"
    command = [
        sys.executable,
        str(ROOT / "launch" / "round.py"),
        "--round",
        "all",
        *overrides(root, name, rounds),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Run(root / name)


def weights(run: Run) -> dict[str, str]:
    """File -> checksum of the model that the round ended with."""
    done = json.loads((run.root / "final" / files.DONE).read_text())["files"]
    return {name: sum_ for name, sum_ in done.items() if name.endswith(".safetensors")}


def hold(name: str, root: Path) -> dict:
    """What happened in a drill: bit_identical, hits or error, s. The undisturbed run is made once a
    `root`.
    """
    rounds = 3 if name == "three_rounds" else 1
    reference = alone(root, rounds)
    (home := root / f"slurm_{name}").mkdir()
    with slurm_cluster.cluster(home) as cluster:
        began_s = time.monotonic()
        drill = Drill(cluster, root, reference, name, rounds)
        try:
            DRILLS[name](drill)
            found = {"bit_identical": weights(drill.run) == weights(reference), "hits": drill.hits}
        except Exception as error:
            found = {"bit_identical": False, "error": str(error)}
    return {**found, "s": round(time.monotonic() - began_s)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "drills", nargs="*", metavar="DRILL", help=f"of {', '.join(DRILLS)} (default: all)"
    )
    parser.add_argument(
        "--dir", type=Path, help="keep the runs here (default: a temporary directory)"
    )
    args = parser.parse_args()
    if absent := slurm_cluster.missing():
        sys.exit(f"{', '.join(absent)} not installed (Debian: apt install slurm-wlm munge)")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = args.dir or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        for name in args.drills or DRILLS:
            results[name] = hold(name, root)
            print(f"{name}: {results[name]}", flush=True)
    print(json.dumps(results))
    sys.exit(not all(r["bit_identical"] for r in results.values()))


if __name__ == "__main__":
    main()
