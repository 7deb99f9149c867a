"""The run directory: every file's name, and its claim by one recipe."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from abscot.common.errors import UserError, shown
from abscot.common.files import write_text_atomic
from abscot.common.ranks import rank
from abscot.recipe.load import ROOT, check_files, dump, load_recipe
from abscot.recipe.schema import Recipe


class Run:
    """Names of everything under runs/NAME."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.world = self.root / "world"
        self.shards = self.root / "shards"
        self.base = self.root / "base"
        self.codebook = self.root / "codebook"
        self.results = self.root / "results"
        self.report = self.root / "report"
        self.logs = self.root / "logs"
        self.tensorboard = self.root / "tensorboard"

    @classmethod
    def of(cls, recipe: Recipe) -> "Run":
        root = Path(recipe.run_root)
        return cls((root if root.is_absolute() else ROOT / root) / recipe.name)

    def traces(self, tag: str) -> Path:
        return self.root / "teacher_traces" / tag

    def train_log(self, tag: str) -> Path:
        return self.root / "train_logs" / f"{tag}.json"

    def checkpoints(self, tag: str) -> Path:
        return self.root / "checkpoints" / tag

    def adapter(self, tag: str) -> Path:
        return self.root / "adapters" / tag

    def plan_of(self, tag: str) -> Path:
        return self.root / "plans" / f"{tag}.npz"


def run_around(path: Path) -> Run | None:
    """The run that a file or directory lies in; None where it lies in none."""
    return next(filter(_is_begun, map(Run, path.resolve().parents)), None)


def _is_begun(run: Run) -> bool:
    """Others write a config.yaml too; that of a run has every key."""
    config = run.config
    return config.is_file() and "\nrun_root: " in config.read_text(errors="replace")


def open_run(root: str | os.PathLike, overrides: Sequence[str] | None = None) -> tuple[Run, Recipe]:
    """The run at `root` and its recipe, with `key.path=value` overrides, which says where it is
    now: a run may have been moved.

    Raises UserError for a directory that is no run.
    """
    run = Run(os.path.realpath(root))
    if not os.path.isfile(run.config):  # pathlib would raise for a loop of links, or a long name
        raise UserError(
            f"{shown(str(root), 300)}: no config.yaml, so not a run; expected the directory of a "
            "run, e.g. runs/tiny-cpu"
        )
    recipe = load_recipe(run.config, overrides)
    return run, replace(recipe, run_root=str(run.root.parent), name=run.root.name)


def claim(recipe: Recipe) -> Run:
    """The recipe's run directory, created or continued.

    Raises UserError when the directory holds a run of another recipe: mixing two would corrupt
    both, unless that one has made nothing yet. What does not shape a model (NOT_SHAPING: how it is
    served and asked, on how many ranks it is trained, when it is saved) may change between two
    commands; config.yaml keeps the last.
    """
    check_files(recipe)
    run = Run.of(recipe)
    text = dump(recipe)
    if run.config.is_file():
        old = load_recipe(run.config)
        found = difference(old, recipe)
        if found and _has_made_something(run):
            raise UserError(
                f"{run.config}: this run was made with another recipe ({found}); give this "
                f"one its own --set name=OTHER, or delete {run.root}"
            )
        if old != recipe and rank() == 0:
            write_text_atomic(run.config, text)
        return run
    if run.root.exists() and any(run.root.iterdir()):
        raise UserError(
            f"{run.root}: not empty and not a run of abscot (no config.yaml); use --set name=OTHER"
        )
    run.root.mkdir(parents=True, exist_ok=True)
    write_text_atomic(run.config, text)
    return run


def _has_made_something(run: Run) -> bool:
    """Is anything there but what says how far a start came? A recipe that was refused at its first
    stage may be corrected.
    """
    return any(path.name not in WITHOUT_WORK for path in run.root.iterdir())


WITHOUT_WORK = {"config.yaml", "logs", ".leases", "tensorboard"}
NOT_SHAPING = {
    "inference",
    "eval",
    "baselines",
    "hang_minutes",
    "trackers",
    "model.gradient_checkpointing",
    "model.keep_attention",
    "traces.shards",
    "train.num_gpus",
    "train.deepspeed",
    "train.deterministic",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_minutes",
    "train.keep_checkpoints",
    "train.export_every_steps",
}


def _shaping(recipe: Recipe) -> dict[str, object]:
    """The recipe's keys that shape what is trained, flat: `train.lr` -> value."""
    flat = {}
    for section, value in asdict(recipe).items():
        keys = (
            {f"{section}.{key}": v for key, v in value.items()}
            if isinstance(value, dict)
            else {section: value}
        )
        flat |= {key: v for key, v in keys.items() if not {section, key} & NOT_SHAPING}
    return flat


def difference(there: Recipe, here: Recipe) -> str | None:
    """The first key that shapes a model and differs, in words; None where none does."""
    old, new = _shaping(there), _shaping(here)
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            return f"{key} is {old.get(key)!r} there, {new.get(key)!r} here"
    return None
