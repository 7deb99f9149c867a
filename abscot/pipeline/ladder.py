"""The stages of the ladder: the run, the baselines, the channel of every round."""

import dataclasses

from abscot.evaluation.benchmarks import has_cots
from abscot.method.lineage import BASELINE_MODES, BASELINES
from abscot.method.phases import PHASES
from abscot.pipeline.stages import Stage, evaluation_stage, stages_of, train_stage
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe


def ladder_recipe(recipe: Recipe) -> Recipe:
    """The recipe, its base asked verbally and directly, its rounds in mode abstract, whatever else
    is asked.
    """
    config = recipe.eval
    base_modes = list(dict.fromkeys(["verbal", "no_cot", *config.base_modes]))
    modes = list(dict.fromkeys(["abstract", *config.modes]))
    return dataclasses.replace(
        recipe, eval=dataclasses.replace(config, base_modes=base_modes, modes=modes)
    )


def ladder_stages(recipe: Recipe) -> list[Stage]:
    """The whole run, then the baselines and their evaluation, then the channel of every round."""
    run, plan = Run.of(recipe), stages_of(recipe)
    for name in BASELINES:
        train = train_stage(recipe, run, PHASES[name], 1)
        modes = BASELINE_MODES[name]
        plan += [
            train,
            evaluation_stage(run, name, train.outputs[0], 1, modes, recipe.eval.benchmarks),
        ]
    open_ = [name for name in recipe.eval.benchmarks if has_cots(name)]
    asked = tuple(word for name in open_ for word in ("--benchmark", name))
    for round_ in range(1, recipe.rounds + 1) if open_ else ():
        tag = PHASES["A"].tag(round_)
        model = run.export(tag, round_, recipe.rounds)
        plan.append(evaluation_stage(run, tag, model, round_, ["channel"], open_, asked))
    return plan
