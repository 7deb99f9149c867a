"""The pure plan of stages: inputs, outputs and commands; what is done and what is next. Nothing is
run here.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from abscot import dist
from abscot.config import ROOT, Recipe, UserError
from abscot.paths import Run, is_done
from abscot.phases import ITERATED, PHASES, Phase

LAUNCH = ROOT / "launch"
SHARD = ROOT / "slurm" / "shard.sh"
LAST_RANK_S = (
    300  # after one rank has ended, the others have so long; then Slurm ends the step on all nodes
)


@dataclass(frozen=True)
class Stage:
    """One command of a run. It is done when all its outputs are: a directory by its DONE file, a
    file by existing.

    round: 0 for what comes before the rounds. ranks: 0 for a plain process, else started by srun in
    a Slurm job of several tasks, by the deepspeed launcher anywhere else.
    """

    name: str
    round: int
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    script: str
    arguments: tuple[str, ...]
    ranks: int = 0
    start: Path | None = None  # the model that a training stage starts from
    mpi: bool = False  # in a Slurm job of several tasks: as many MPI ranks share the work
    # In a Slurm job of several tasks: an engine on every so many GPUs, each a shard of the work.
    gpus_an_engine: int = 0

    def done(self) -> bool:
        return all(map(finished, self.outputs))

    def missing_inputs(self) -> list[Path]:
        return [path for path in self.inputs if not finished(path)]

    def command(self, config: Path, port: int = 29_500) -> list[str]:
        arguments = [str(LAUNCH / self.script), "--recipe", str(config), *self.arguments]
        job, python = dist.allocation(), [*container(), sys.executable]
        if job and self.ranks:
            return [*srun(self.ranks), f"--wait={LAST_RANK_S}", *python, *arguments]
        if (
            job and self.mpi
            # The wheel's mpiexec starts its daemons with srun; ranks may use all cores of their node.
        ):
            return [
                beside_python("mpiexec"),
                "--bind-to",
                "none",
                "-n",
                str(job.tasks),
                *python,
                *arguments,
            ]
        if job and self.gpus_an_engine:
            a_node = max(1, job.tasks // job.nodes // self.gpus_an_engine)
            shard = [f"--ntasks-per-node={a_node}", "bash", str(SHARD), str(self.gpus_an_engine)]
            return [*srun(job.nodes * a_node), *shard, *python, *arguments]
        if not self.ranks:
            return [*python, *arguments]
        return [
            *container(),
            beside_python("deepspeed"),
            "--num_gpus",
            str(self.ranks),
            "--master_port",
            str(port),
            *arguments,
        ]


def container() -> list[str]:
    """What starts a process of a stage in the site's container (slurm/site.sh). Who calls srun
    stays outside of it.
    """
    return shlex.split(os.environ.get("ABSCOT_CONTAINER", ""))


def beside_python(name: str) -> str:
    """A program of the same virtual environment."""
    return str(Path(sys.executable).with_name(name))


def srun(tasks: int) -> list[str]:
    """A task that fails does not end the others: ranks agree on when to stop, and the work of other
    shards is kept.
    """
    return ["srun", f"--ntasks={tasks}", "--kill-on-bad-exit=0"]


def finished(path: Path) -> bool:
    return path.is_file() if path.suffix else is_done(path)


def stages(recipe: Recipe) -> list[Stage]:
    """Every stage of the run, in the order in which one machine runs them."""
    run = Run.of(recipe)
    plan = before_rounds(recipe, run)
    for round_ in range(1, recipe.rounds + 1):
        plan += round_stages(recipe, run, round_)
    return plan


def before_rounds(recipe: Recipe, run: Run) -> list[Stage]:
    world = (Stage("world", 0, (), (run.world,), "world.py", ()),) if recipe.world else ()
    source = (run.world,) if recipe.world else ()
    return [
        *world,
        Stage("extend", 0, source, (run.base,), "extend.py", ()),
        Stage("prepare", 0, (run.base,), (run.shards,), "prepare.py", (), mpi=True),
        _evaluation(recipe, run, 0),
    ]


def round_stages(recipe: Recipe, run: Run, round_: int) -> list[Stage]:
    """traces A, phase A and its export, traces B, phase B and its export, evaluation."""
    plan, gpus_an_engine = [], recipe.inference.tensor_parallel if recipe.traces.shards > 1 else 0
    for phase in map(PHASES.get, ITERATED):
        train = train_stage(recipe, run, phase, round_)
        tag = phase.tag(round_)
        arguments = ("--round", str(round_), "--phase", phase.name)
        plan += [
            Stage(
                f"traces_{tag}",
                round_,
                (run.shards, train.start),
                (run.traces(tag),),
                "traces.py",
                arguments,
                gpus_an_engine=gpus_an_engine,
            ),
            train,
        ]
    return [*plan, _evaluation(recipe, run, round_)]


def train_stage(recipe: Recipe, run: Run, phase: Phase, round_: int) -> Stage:
    """Training and export of one phase: the same processes, so that the weights written are the
    weights trained.

    Phase A starts from the model of the round before, B from this round's A, a baseline from the
    base.
    """
    tag = phase.tag(round_)
    if phase.name == "B":
        start = run.export(PHASES["A"].tag(round_), round_, recipe.rounds)
    else:
        start = run.round_model(round_ - 1 if phase.iterated else 0, recipe.rounds)
    traces = (run.traces(tag),) if phase.trace_source == "model" else ()
    adapter = (run.adapter(tag),) if recipe.lora else ()
    return Stage(
        f"train_{tag}",
        round_,
        (run.shards, start, *traces),
        (run.export(tag, round_, recipe.rounds), *adapter),
        "train.py",
        ("--phase", phase.name, "--round", str(round_)),
        recipe.train.num_gpus or gpus(),
        start,
    )


def _evaluation(recipe: Recipe, run: Run, round_: int) -> Stage:
    model = run.round_model(round_, recipe.rounds)
    modes = recipe.eval.modes if round_ else recipe.eval.base_modes
    return evaluation_stage(run, model.name, model, round_, modes, recipe.eval.benchmarks)


def evaluation_stage(
    run: Run,
    name: str,
    model: Path,
    round_: int,
    modes: list[str],
    benchmarks: list[str],
    arguments: tuple[str, ...] = (),
) -> Stage:
    """The evaluation of one model, called `name` there, in the modes that launch/evaluate.py asks
    it by itself.
    """
    outputs = tuple(
        run.results / f"{mode}_{name}_{benchmark}.meta.json"
        for benchmark in benchmarks
        for mode in modes
    )
    return Stage(
        f"evaluate_{name}", round_, (model,), outputs, "evaluate.py", ("--model", name, *arguments)
    )


def gpus() -> int:
    """GPUs to train on: a task of the Slurm job each, or this machine's."""
    job = dist.allocation()
    return job.tasks if job else local_gpus()


def local_gpus() -> int:
    """CUDA GPUs of this machine, counted without starting CUDA; 1 rank where there is none."""
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) or 1


def select(recipe: Recipe, which: str) -> list[Stage]:
    """The stages of `--round`: `all`, 0 (what comes before the rounds) or one round's."""
    plan = stages(recipe)
    if which == "all":
        return plan
    if not which.isdigit() or int(which) > recipe.rounds:
        raise UserError(
            f"--round {which}: expected all, 0 (before the rounds) or 1 to {recipe.rounds}"
        )
    return [stage for stage in plan if stage.round == int(which)]


def maker_of(recipe: Recipe, path: Path) -> str:
    """The command that makes `path`, for error messages."""
    for stage in stages(recipe):
        if path in stage.outputs:
            config = Run.of(recipe).config
            if config.is_file():
                return f"python launch/round.py --recipe {config} --round {stage.round}"
            return f"python launch/round.py --round {stage.round}, with the same --recipe and --set"
    for phase in PHASES.values():
        if not phase.iterated and path in train_stage(recipe, Run.of(recipe), phase, 1).outputs:
            return f"deepspeed launch/train.py --phase {phase.name}"
    return "python launch/round.py --round all"


def require(recipe: Recipe, *inputs: Path) -> None:
    """Raises UserError naming the first input that is missing and the command that makes it."""
    for path in inputs:
        if not finished(path):
            raise UserError(
                f"{path}: missing or unfinished; make it with: {maker_of(recipe, path)}"
            )
