"""The pure plan of stages: inputs, outputs and commands; what is done and what is next. Nothing is
run here.
"""

from dataclasses import dataclass
from pathlib import Path

from abscot.common.errors import UserError
from abscot.common.files import finished
from abscot.method.phases import ITERATED, PHASES, Phase
from abscot.pipeline.launchers import Launch, ranks_to_train_on
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


@dataclass(frozen=True)
class Stage:
    """One command of a run. It is done when all its outputs are: a directory by its DONE file, a
    file by existing. round: 0 for what comes before the rounds.
    """

    name: str
    round: int
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    launch: Launch
    start: Path | None = None  # the model that a training stage starts from

    @property
    def kind(self) -> str:
        """world, extend, prepare, traces, train or evaluate: its launch script."""
        return self.launch.script.removesuffix(".py")

    def done(self) -> bool:
        return all(map(finished, self.outputs))

    def missing_inputs(self) -> list[Path]:
        return [path for path in self.inputs if not finished(path)]


def stages_of(recipe: Recipe) -> list[Stage]:
    """Every stage of the run, in the order in which one machine runs them."""
    run = Run.of(recipe)
    plan = before_rounds(recipe, run)
    for round_ in range(1, recipe.rounds + 1):
        plan += round_stages(recipe, run, round_)
    return plan


def before_rounds(recipe: Recipe, run: Run) -> list[Stage]:
    world = (Stage("world", 0, (), (run.world,), Launch("world.py")),) if recipe.world else ()
    source = (run.world,) if recipe.world else ()
    return [
        *world,
        Stage("extend", 0, source, (run.base,), Launch("extend.py")),
        Stage("prepare", 0, (run.base,), (run.shards,), Launch("prepare.py", mpi=True)),
        _evaluation(recipe, run, 0),
    ]


def round_stages(recipe: Recipe, run: Run, round_: int) -> list[Stage]:
    """traces A, phase A and its export, traces B, phase B and its export, evaluation."""
    plan, gpus_per_engine = [], recipe.inference.tensor_parallel if recipe.traces.shards > 1 else 0
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
                Launch("traces.py", arguments, gpus_per_engine=gpus_per_engine),
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
        Launch(
            "train.py",
            ("--phase", phase.name, "--round", str(round_)),
            recipe.train.num_gpus or ranks_to_train_on(),
        ),
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
    launch = Launch("evaluate.py", ("--model", name, *arguments))
    return Stage(f"evaluate_{name}", round_, (model,), outputs, launch)


def select(recipe: Recipe, which: str) -> list[Stage]:
    """The stages of `--round`: `all`, 0 (what comes before the rounds) or one round's."""
    plan = stages_of(recipe)
    if which == "all":
        return plan
    if not which.isdigit() or int(which) > recipe.rounds:
        raise UserError(
            f"--round {which}: expected all, 0 (before the rounds) or 1 to {recipe.rounds}"
        )
    return [stage for stage in plan if stage.round == int(which)]


def maker_of(recipe: Recipe, path: Path) -> str:
    """The command that makes `path`, for error messages."""
    for stage in stages_of(recipe):
        if path in stage.outputs:
            config = Run.of(recipe).config
            if config.is_file():
                return f"python launch/round.py --recipe {config} --round {stage.round}"
            return f"python launch/round.py --round {stage.round}, with the same --recipe and --set"
    for phase in PHASES.values():
        if not phase.iterated and path in train_stage(recipe, Run.of(recipe), phase, 1).outputs:
            return f"deepspeed launch/train.py --phase {phase.name}"
    return "python launch/round.py --round all"
