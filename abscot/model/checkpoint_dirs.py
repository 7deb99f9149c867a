"""The checkpoints of a training as directories: named, listed, kept, removed. What is in them is
for training to know.

While a training runs they are what it goes on from. Once its model is published the newest is kept
until an engine that loads the model has agreed with it (handover.py): until then it is the only
other copy of what was trained, and the model can be exported from it again.
"""

import contextlib
import re
import shutil
from pathlib import Path

from abscot.common import files
from abscot.common.log import log
from abscot.recipe.run import Run

PREFIX = "step_"


def at_step(directory: Path, step: int) -> Path:
    return directory / f"{PREFIX}{step:07}"


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints, oldest first. Each appeared whole: what is unfinished has a hidden name."""
    return sorted(path for path in directory.glob(f"{PREFIX}*") if path.is_dir())


def hidden(checkpoint: Path) -> Path:
    """Its name while it is not whole."""
    return checkpoint.with_name(f".{checkpoint.name}.partial")


def unfinished(directory: Path) -> list[Path]:
    """What a run that was killed while it saved or removed one has left."""
    return sorted(directory.glob(f".{PREFIX}*.partial"))


def superfluous(directory: Path) -> list[Path]:
    """What is there of a training whose model is published, but for the checkpoint that is kept."""
    return [*checkpoints(directory)[:-1], *unfinished(directory)]


def clear(directory: Path, keep: int) -> None:
    """Removes all but the `keep` newest. Several processes may do so at the same time."""
    for path in unfinished(directory):
        _remove_tree(path)
    found = checkpoints(directory)
    for path in found[: len(found) - keep]:
        with contextlib.suppress(FileNotFoundError):  # another process was first
            # A kill leaves it hidden and unfinished, not damaged.
            _remove_tree(path.rename(hidden(path)))


def _remove_tree(path: Path) -> None:
    while path.exists():
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            shutil.rmtree(path)


def kept_for(model: Path) -> Path | None:
    """The checkpoint from which a published model can be exported again; None where there is none,
    and of a model that is no training's last.
    """
    model = model.absolute()
    meta = files.read_done(model) if files.is_done(model) else {}
    tag, step = str(meta.get("tag")), meta.get("step")
    if not re.fullmatch(r"\w+", tag) or not isinstance(step, int):
        return None
    for root in model.parents[:3:2]:  # of a round's model, and of one among the checkpoints
        directory = Run(root).checkpoints(tag)
        if Run(root).config.is_file() and model.parent in (root, directory):
            kept = at_step(directory, step)
            return kept if checkpoints(directory)[-1:] == [kept] else None
    return None


def let_go(model: Path) -> None:
    """An engine has agreed with a published model: the checkpoint kept for it is removed."""
    if kept := kept_for(model):
        try:
            clear(kept.parent, keep=0)
            log(f"{model.name}: {kept.parent.name}/{kept.name} removed, which was kept until now")
        except PermissionError as error:  # who asks somebody else's model need not be its owner
            log(f"WARNING {model.name}: {kept} is needed no more, and cannot be removed ({error})")
