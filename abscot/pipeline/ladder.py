"""The stages of the ladder: the run, the baselines, the channel of every round."""

import dataclasses

from abscot.evaluation.benchmarks import has_cots
from abscot.evaluation.modes import CHANNEL
from abscot.method.lineage import baseline_trainings, phase_models
from abscot.pipeline.stages import Stage, evaluation_stage, stages_of, train_stage
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


def ladder_recipe(recipe: Recipe) -> Recipe:
    """The recipe, its base asked for its reasoning in words, its rounds in mode abstract, whatever
    else is asked.
    """
    config = recipe.eval
    in_words = [] if {"verbal", "thinking"} & set(config.base_modes) else ["verbal"]
    modes = list(dict.fromkeys(["abstract", *config.modes]))
    asked = dataclasses.replace(config, base_modes=[*in_words, *config.base_modes], modes=modes)
    return dataclasses.replace(recipe, eval=asked)


def ladder_stages(recipe: Recipe) -> list[Stage]:
    """The whole run, then the baselines and their evaluation, then the channel of every round."""
    run, stages = Run.of(recipe), stages_of(recipe)
    models = {model.name: model for model in phase_models(recipe, run)}
    for training in baseline_trainings(recipe, run):
        model = models[training.tag]
        stages += [train_stage(training), evaluation_stage(run, model, recipe.eval.benchmarks)]
    open_ = [name for name in recipe.eval.benchmarks if has_cots(name)]
    asked = tuple(word for name in open_ for word in ("--benchmark", name))
    channels = [model for model in models.values() if CHANNEL in model.modes] if open_ else []
    return stages + [evaluation_stage(run, model, open_, asked) for model in channels]
