"""The stages of a run: inputs, outputs and commands; what is done and what is next. Nothing is run
here.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from abscot.common.errors import UserError
from abscot.common.files import finished
from abscot.evaluation.results import META_SUFFIX, is_whole, meta_file, result_name
from abscot.method.lineage import (
    Model,
    Training,
    baseline_trainings,
    listed_baselines,
    phase_models,
    round_models,
    trainings,
    trainings_of,
)
from abscot.method.schedules import GROUNDED
from abscot.model import checkpoint_dirs
from abscot.pipeline.launchers import Launch, gpus_here, ranks_to_train_on
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


@dataclass(frozen=True)
class Stage:
    """One command of a run. It is done when all its outputs are (a directory by its DONE file, a
    result by a meta file that vouches for its rows) and no checkpoint is left that is not kept.
    round: 0 for what comes before the rounds. training: whose traces it makes, which it does, or,
    of a baseline, whose model it asks.
    """

    name: str
    round: int
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    launch: Launch
    training: Training | None = None

    @property
    def kind(self) -> str:
        """world, extend, prepare, codebook, traces, train or evaluate: its launch script."""
        return self.launch.script.removesuffix(".py")

    def done(self) -> bool:
        return all(map(_whole, self.outputs)) and not self.checkpoints_left()

    def checkpoints_left(self) -> list[Path]:
        """Of a training whose model is published: a kill came before they were removed, and its
        command removes them.
        """
        trains = self.training is not None and self.kind == "train"
        return checkpoint_dirs.superfluous(self.training.checkpoints) if trains else []

    def missing_inputs(self) -> list[Path]:
        return [path for path in self.inputs if not finished(path)]


def _whole(output: Path) -> bool:
    return is_whole(output) if output.name.endswith(META_SUFFIX) else finished(output)


def stages_of(recipe: Recipe) -> list[Stage]:
    """Every stage of the run, in the order in which one machine runs them."""
    run = Run.of(recipe)
    stages = before_rounds(recipe, run)
    for round_ in range(1, recipe.rounds + 1):
        stages += round_stages(recipe, run, round_)
    return stages + baseline_stages(recipe, run)


def before_rounds(recipe: Recipe, run: Run) -> list[Stage]:
    world = (Stage("world", 0, (), (run.world,), Launch("world.py")),) if recipe.world else ()
    source = (run.world,) if recipe.world else ()
    return [
        *world,
        Stage("extend", 0, source, (run.base,), Launch("extend.py")),
        Stage("prepare", 0, (run.base,), (run.shards,), Launch("prepare.py", mpi=True)),
        evaluation_stage(run, round_models(recipe, run)[0], recipe.eval.benchmarks),
    ]


def round_stages(recipe: Recipe, run: Run, round_: int) -> list[Stage]:
    """For each phase its traces, its training and export; then the evaluation of the round. The
    codebook comes before the first traces that are made with it.
    """
    stages = []
    grounded = [t for t in trainings(recipe, run) if t.trace_source == GROUNDED]
    for training in trainings_of(recipe, run, round_):
        stages += [codebook_stage(recipe, run, round_)] * (training in grounded[:1])
        stages += [trace_stage(training)] * training.reads_traces
        stages.append(train_stage(training))
    model = round_models(recipe, run)[round_]
    return [*stages, evaluation_stage(run, model, recipe.eval.benchmarks)]


def codebook_stage(recipe: Recipe, run: Run, round_: int) -> Stage:
    inputs = (run.base, run.shards)
    return Stage("codebook", round_, inputs, (run.codebook,), Launch("codebook.py"))


def baseline_stages(recipe: Recipe, run: Run) -> list[Stage]:
    """The baselines of the run: trained and asked with its last round."""
    models, stages = {model.name: model for model in phase_models(recipe, run)}, []
    for training in listed_baselines(recipe, run):
        asked = evaluation_stage(run, models[training.tag], recipe.eval.benchmarks)
        stages += [train_stage(training), replace(asked, training=training)]
    return [replace(stage, round=recipe.rounds) for stage in stages]


def trace_stage(training: Training) -> Stage:
    recipe, run = training.recipe, training.run
    inputs = (run.shards, run.base, *filter(None, [training.trace_maker]))
    several = recipe.traces.shards != 1 if recipe.traces.shards else gpus_here()
    engines = recipe.inference.tensor_parallel if several else 0
    if training.trace_source == GROUNDED:
        engines = 1  # nothing is asked of vLLM: a process a GPU
    arguments = ("--round", str(training.round), "--phase", training.phase.name)
    launch = Launch("traces.py", arguments, gpus_per_engine=engines)
    outputs = (training.traces,)
    return Stage(f"traces_{training.tag}", training.round, inputs, outputs, launch, training)


def train_stage(training: Training) -> Stage:
    """Training and export of one phase: the same processes, so that the weights written are the
    weights trained.
    """
    arguments = ("--phase", training.phase.name, "--round", str(training.round))
    ranks = ranks_to_train_on(training.recipe.train.num_gpus)
    return Stage(
        f"train_{training.tag}",
        training.round,
        tuple(training.inputs),
        tuple(training.outputs),
        Launch("train.py", arguments, ranks),
        training,
    )


def evaluation_stage(
    run: Run, model: Model, benchmarks: list[str], arguments: tuple[str, ...] = ()
) -> Stage:
    """The evaluation of one model in its own modes, as launch/evaluate.py does it by itself."""
    outputs = tuple(
        meta_file(run, result_name(mode, model.name, benchmark))
        for benchmark in benchmarks
        for mode in model.modes
    )
    launch = Launch("evaluate.py", ("--model", model.name, *arguments))
    round_ = 1 if model.round is None else model.round
    return Stage(f"evaluate_{model.name}", round_, (model.directory,), outputs, launch)


def select(recipe: Recipe, which: str) -> list[Stage]:
    """The stages of `--round`: `all`, 0 (what comes before the rounds) or one round's."""
    stages = stages_of(recipe)
    if which == "all":
        return stages
    if which not in map(str, range(recipe.rounds + 1)):
        raise UserError(
            f"--round {which}: expected all, 0 (before the rounds) or 1 to {recipe.rounds}"
        )
    return [stage for stage in stages if stage.round == int(which)]


def require_finished(run: Run, recipe: Recipe) -> None:
    """Raises UserError, naming stages, where one of the run's is not done."""
    missing = [stage.name for stage in stages_of(recipe) if not stage.done()]
    if missing:
        raise UserError(
            f"{run.root}: not finished ({', '.join(missing[:4])}{', ..' if missing[4:] else ''}); "
            f"finish it with: python launch/round.py --recipe {run.config} --round all"
        )


def maker_of(recipe: Recipe, path: Path) -> str:
    """The command that makes `path`, for error messages."""
    config = Run.of(recipe).config
    given = f" --recipe {config}" if config.is_file() else ""
    for stage in stages_of(recipe):
        if path in stage.outputs:
            note = "" if given else ", with the same --recipe and --set"
            return f"python launch/round.py{given} --round {stage.round}{note}"
    for training in baseline_trainings(recipe, Run.of(recipe)):
        if path in training.outputs:
            return f"deepspeed launch/train.py{given} --phase {training.phase.name}"
    return f"python launch/round.py{given} --round all"
