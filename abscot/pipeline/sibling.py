"""Runs beside a run: the same recipe but for some keys. What both would make the same is not made
again: the second run gets it from the first.
"""

import dataclasses
import itertools
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import pydantic

from abscot.common import files
from abscot.common.disk import naming
from abscot.common.errors import DamagedInput, UserError
from abscot.evaluation.jobs import Job
from abscot.evaluation.results import is_whole, meta_file, read_meta
from abscot.method import schedules
from abscot.method.lineage import round_models
from abscot.method.phases import loop
from abscot.pipeline.fan_out import answers_of
from abscot.pipeline.lease import claimed, exclusive
from abscot.pipeline.stages import stages_of
from abscot.recipe.mistakes import first_mistake
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe

# Directory of a run -> the keys that shape it, besides those of the directories above it.
SHAPED_BY = {
    "world": ("seed", "world", "data.system_prompt"),
    "base": ("model", "codebook_size"),
    "shards": (
        "data",
        "train.capacity_tokens",
        "traces.m_max",
        "eval.benchmarks",
        "eval.files",
    ),
    "codebook": ("grounding", "traces.m_min", "train.channel_rows", "staging"),
}
RESULTS = "results"  # the base's answers


def siblings(recipe: Recipe) -> list[Recipe]:
    """The recipes of the named schedules that `recipe` does not follow itself, each a run
    NAME-SCHEDULE beside its own.

    What belongs to a schedule is the named one's: sources and epochs of the loop's phases, and no
    training ends early. Baselines are trained in the first run alone. Raises UserError for a name
    that is too long.
    """
    own = schedules.schedule_of(recipe)
    return [_following(recipe, name) for name in schedules.SCHEDULES if name != own]


def _following(recipe: Recipe, schedule: str) -> Recipe:
    phases, name = {phase.name for phase in loop()}, f"{recipe.name}-{schedule}"
    train, traces = recipe.train, recipe.traces
    sources, epochs = (
        {phase: value for phase, value in given.items() if phase not in phases}
        for given in (traces.sources, train.phase_epochs)
    )
    try:
        made = dataclasses.replace(
            recipe,
            name=name,
            schedule=schedule,
            traces=dataclasses.replace(traces, sources=sources),
            train=dataclasses.replace(train, phase_epochs=epochs, until_channel=None),
        )
    except pydantic.ValidationError as error:
        raise UserError(
            f"name: {name}, where the {schedule} schedule runs: {first_mistake(error)[1]}; give "
            "the run a shorter --set name=NAME"
        ) from None
    schedules.check(made)
    return made


def share(recipe: Recipe, other: Recipe, what: Collection[str] = (*SHAPED_BY, RESULTS)) -> None:
    """Gives the run of `other` what the run of `recipe` has finished and the other would make the
    same: of `what` the directories whose keys agree in both recipes, and the base's results that
    answer what the other asks.

    They are hard links, or copies where the file system has none: whole or not there, with the same
    fingerprints. What is there already stays. Holds the other run. Raises UserError where another
    process works on it and where it holds something else in such a place, DamagedInput where what
    it would get is not what was sealed.
    """
    mine = Run.of(recipe)
    with claimed(other) as run:
        used = {path for stage in stages_of(other) for path in (*stage.inputs, *stage.outputs)}
        for name in _alike(recipe, other):
            target = run.root / name
            if name in what and target in used and files.is_done(mine.root / name):
                _share_directory(mine.root / name, target)
        if RESULTS in what and files.is_done(run.base):
            _share_results(mine, other, run)


def _alike(recipe: Recipe, other: Recipe) -> list[str]:
    """The directories whose keys agree."""

    def agree(name: str) -> bool:
        return all(_value(recipe, key) == _value(other, key) for key in SHAPED_BY[name])

    return list(itertools.takewhile(agree, SHAPED_BY))


def _value(recipe: Recipe, key: str):
    value = recipe
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _share_directory(source: Path, target: Path) -> None:
    done = files.Done.of_directory(source)
    if files.is_done(target):
        if files.fingerprint(target) != files.fingerprint(source):
            raise UserError(
                f"{target}: not the {source.name} of {source.parent}, though their recipes agree; "
                f"delete {target.parent} and start again"
            )
        return
    files.verify(source)
    with files.publish(target, done.meta, done.files) as directory:
        for name, checksum in done.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not _is_linked(source / name, path) and files.sha256_on_disk(path) != checksum:
                raise DamagedInput(source, f"{source / name}: its copy differs from DONE")


def _share_results(mine: Run, other: Recipe, run: Run) -> None:
    base = round_models(other, run)[0]
    jobs = [
        Job(other, run, base, mode, benchmark)
        for benchmark in other.eval.benchmarks
        for mode in base.modes
    ]
    wanted = [job for job in jobs if not job.done() and _answers(mine, job)]
    if not wanted:
        return
    run.results.mkdir(exist_ok=True)
    with exclusive(run.root, *answers_of(wanted)):
        for job in wanted:
            job.meta.unlink(missing_ok=True)  # it vouches for the rows, so it comes last
            found = mine.results.glob(f"{job.name}.*")
            for path in sorted(found, key=lambda path: path.name == job.meta.name):
                target = run.results / path.name
                temp = target.with_name(f".{target.name}.{os.getpid()}.tmp")
                with naming(target), files.removed_on_error(temp):
                    if not _is_linked(path, temp):
                        files.sha256_on_disk(temp)
                    os.replace(temp, target)


def _answers(mine: Run, job: Job) -> bool:
    """Whether a result of my run is what the job would make."""
    return is_whole(meta_file(mine, job.name)) and read_meta(mine, job.name).agrees_with(
        job.identity()
    )


def _is_linked(source: Path, target: Path) -> bool:
    """Makes `target` a link to the file, else a copy of it."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links; what is wrong here, a copy meets
        shutil.copyfile(source, target)
        return False
    return True
