"""What is it that teaches? A grounded run again and again, in one long round, each time with one
changed thing.

  python launch/bench.py ablations runs/tiny-cpu                  all of them, beside that run
  python launch/bench.py ablations runs/tiny-cpu --only M=8 M=64 --workers 2

Base and shards are the run's own where the change leaves them as they are, and every variant trains
on as many answers as the rounds of the run together. What is done is not done again.
"""

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys

from abscot.common.arguments import whole_number
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.common.ranks import CORES_PER_RANK
from abscot.common.table import Table
from abscot.method.lineage import round_model, trainings
from abscot.method.phases import loop
from abscot.method.schedules import loop_epochs
from abscot.pipeline.sibling import share
from abscot.recipe.load import ROOT, load_recipe
from abscot.recipe.run import Run, open_run
from abscot.recipe.schema import Recipe
from abscot.reporting import run_data

WITHOUT_FIRST = "no A, a longer B"
OWN_SAMPLES = "traces.sources={A: [grounded], B: [model]}"
LAYERS = (0.0, 0.34, 0.67, 1.0)  # the recipe's own is the last one, before the result
VARIANTS: dict[str, tuple[str, ...]] = {  # what is changed -> the keys that change it
    "nothing": (),
    WITHOUT_FIRST: (),  # its epochs go to the other phase: see one_round
    **{
        f"layer {layer:g}, {at}": (f"grounding.layer={layer}", f"grounding.position={at}")
        for at, layers in (("end", LAYERS), ("before_result", LAYERS[:-1]))
        for layer in layers
    },
    **{f"M={size}": (f"codebook_size={size}",) for size in (8, 64)},
    "two tokens a step": ("grounding.tokens_per_step=2", "traces.m_max=12"),
    "B on its own samples": (OWN_SAMPLES,),
    **{f"B on the best of {k}": (OWN_SAMPLES, f"traces.best_of={k}") for k in (4, 8)},
    "B on samples in the CoT's sight": ("traces.sources={A: [grounded], B: [model_with_cot]}",),
    "random traces in A, own in B": ("schedule=paper",),
}
ASKED = ("eval.modes=[abstract, abstract_swapped]", "baselines=[]")


def run(options: list[str] = ()) -> dict:
    """Runs the variants that are not done, and prints the table. Raises UserError where the run is
    not of the world, or follows another schedule.
    """
    args = _parser().parse_args(options)
    main_run, recipe = open_run(args.run)
    if recipe.world is None or recipe.schedule != "grounded":
        raise UserError(f"{args.run}: expected a run of the world with schedule `grounded`")
    recipes = {changed: variant(main_run, recipe, changed) for changed in VARIANTS}
    wanted = args.only or list(VARIANTS)
    for name in wanted:  # here, since a lease is held by the main thread
        share(recipe, recipes[name])
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        made = {name: pool.submit(_make, recipes[name]) for name in wanted}
    refused = {name: line.result() for name, line in made.items() if line.result()}
    rows = {name: refused.get(name) or measured(recipes[name]) for name in wanted}
    print(table(rows).text())
    for name, line in refused.items():
        print(f"{name}: {line}")
    return {"variants": rows}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.py ablations", allow_abbrev=False)
    parser.add_argument(
        "run", metavar="RUN", help="a grounded run of the world, whose base is used"
    )
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="NAME")
    parser.add_argument("--workers", type=whole_number(1), default=1, help="variants at a time")
    return parser


def variant(main_run: Run, recipe: Recipe, changed: str) -> Recipe:
    """The recipe of a key of VARIANTS: a run beside the main one, named by what is changed."""
    epochs = f"train.phase_epochs={one_round(recipe, changed)}"
    keys = ("rounds=1", epochs, *VARIANTS[changed], *ASKED)
    words = re.sub("[^a-z0-9.]+", "-", changed.lower())
    name = f"name={recipe.name}-ablation-{words}"
    place = f"run_root={recipe.run_root}"
    return load_recipe(main_run.config, [*keys, name, place])


def one_round(recipe: Recipe, changed: str) -> dict[str, int]:
    """Epochs by phase of a round that is as long as all rounds of the recipe together."""
    rounds = range(1, recipe.rounds + 1)
    epochs = {phase.name: sum(loop_epochs(recipe, phase, r) for r in rounds) for phase in loop()}
    if changed != WITHOUT_FIRST:
        return epochs
    first, *_, last = epochs
    return {**epochs, first: 0, last: epochs[first] + epochs[last]}


def _make(changed: Recipe) -> str | None:
    """Trains and asks one variant. Returns the line that refused it, None where it is done."""
    config, environ = Run.of(changed).config, {**os.environ, CORES_PER_RANK: "1"}
    steps = (
        ["round.py", "--round", "all", "--without-evaluation"],
        ["evaluate.py", "--model", round_model(changed, Run.of(changed), 1).name],
    )
    for script, *arguments in steps:
        command = [sys.executable, str(ROOT / "launch" / script), "--recipe", str(config)]
        ended = subprocess.run([*command, *arguments], env=environ, capture_output=True, text=True)
        if ended.returncode:
            return (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1]
    log(f"{changed.name}: done")
    return None


def measured(recipe: Recipe) -> dict[str, float | None]:
    """In percent: accuracy, and with another problem's trace; the channel at the end of phase A;
    loss on Z at the end of the last phase, nats.
    """
    data = run_data.read(Run.of(recipe))
    final = round_model(recipe, data.run, 1).name
    accuracy, swapped = (
        100 * data.of(mode, final, "world").accuracy.value for mode in recipe.eval.modes
    )
    logs = [data.logs[training.tag] for training in trainings(recipe, data.run)]
    channels = [each.channel for log in logs for each in log.channel]
    tail = logs[-1].steps[-10:]
    return {
        "accuracy": accuracy,
        "swapped": swapped,
        "channel": 100 * channels[-1] if channels else None,
        "loss_z": sum(step.loss_z for step in tail) / len(tail),
    }


def table(rows: dict[str, dict | str]) -> Table:
    cells = [
        (name, "refused", "–", "–", "–")
        if isinstance(row, str)
        else (name, *("–" if value is None else f"{value:.2f}" for value in row.values()))
        for name, row in rows.items()
    ]
    columns = ("changed", "accuracy %", "another's trace %", "channel %", "loss z")
    return Table(columns, tuple(cells), 1)
