"""The stages of the ladder: the run, the baselines, the channel of every round; and the same run by
the other schedules, beside it.
"""

import dataclasses

from abscot.evaluation.benchmarks import has_cots
from abscot.evaluation.modes import CHANNEL
from abscot.method.lineage import Model, Training, phase_models, trainings
from abscot.method.phases import baselines
from abscot.pipeline import runner
from abscot.pipeline.sibling import share, siblings
from abscot.pipeline.stages import Stage, evaluation_stage, stages_of
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

# Every round's model is asked in these: as it is, behind another problem's trace, behind its own
# trace shuffled.
ASKED = ("abstract", "abstract_swapped", "abstract_permuted")


def ladder_recipe(recipe: Recipe) -> Recipe:
    """The recipe with all baselines, its base asked for its reasoning in words, its rounds in
    ASKED, whatever else is asked.
    """
    config = recipe.eval
    in_words = [] if {"verbal", "thinking"} & set(config.base_modes) else ["verbal"]
    modes = list(dict.fromkeys([*ASKED, *config.modes]))
    asked = dataclasses.replace(config, base_modes=[*in_words, *config.base_modes], modes=modes)
    return dataclasses.replace(recipe, eval=asked, baselines=[phase.name for phase in baselines()])


def ladder_siblings(recipe: Recipe) -> list[Recipe]:
    """The runs of the other schedules; the baselines are the first run's."""
    return [dataclasses.replace(made, baselines=[]) for made in siblings(recipe)]


def ladder_stages(recipe: Recipe) -> list[Stage]:
    """One run of the ladder: the whole run, then the channel of every round."""
    run, stages = Run.of(recipe), stages_of(recipe)
    open_ = [name for name in recipe.eval.benchmarks if has_cots(name)]
    if not open_:
        return stages
    asked = tuple(word for name in open_ for word in ("--benchmark", name))
    models = {model.name: model for model in phase_models(recipe, run)}
    for training in trainings(recipe, run):
        if training.phase.asked_in == CHANNEL:
            stages.append(_channel_stage(training, models, open_, asked))
    return stages


def _channel_stage(
    training: Training, models: dict[str, Model], benchmarks: list[str], asked: tuple[str, ...]
) -> Stage:
    if not training.ends_round:
        return evaluation_stage(training.run, models[training.tag], benchmarks, asked)
    path = training.export  # where no phase follows it, its model is the round's
    model = Model(path.name, path, training.round, (CHANNEL,))
    made = evaluation_stage(training.run, model, benchmarks, ("--mode", CHANNEL, *asked))
    return dataclasses.replace(made, name=f"channel_{model.name}")


def run_ladder(recipe: Recipe) -> None:
    """Runs what is not done: the run, then each of its siblings, which get what they share. Raises
    as `runner.run_stages` and `share` do.
    """
    runner.run_stages(recipe, ladder_stages(recipe))
    for other in ladder_siblings(recipe):
        print(f"{Run.of(other).root}: the {other.schedule} schedule", flush=True)
        share(recipe, other)
        runner.run_stages(other, ladder_stages(other))


def dry_run(recipe: Recipe) -> None:
    """Prints the stages of all the runs; of a sibling those that it does not share."""
    first, stages = Run.of(recipe).root, ladder_stages(recipe)
    runner.dry_run(recipe, stages)
    made = {path.relative_to(first) for s in stages if s.round == 0 for path in s.outputs}
    for other in ladder_siblings(recipe):
        root, own, shared = Run.of(other).root, [], []
        for stage in ladder_stages(other):
            is_shared = made.issuperset(path.relative_to(root) for path in stage.outputs)
            (shared if is_shared else own).append(stage)
        names = ", ".join(stage.name for stage in shared)
        print(f"\n{root}: the {other.schedule} schedule; {names}: linked from {first}")
        runner.dry_run(other, own)
