"""The run directory: every file's name, and the atomic publish (temp, fsync, rename, DONE with
checksums).
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from abscot.config import ROOT, Recipe, UserError, check_files, dump
from abscot.dist import rank

DONE = "DONE"


class Run:
    """Names of everything under runs/NAME."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.plan = self.root / "plan.json"
        self.world = self.root / "world"
        self.shards = self.root / "shards"
        self.base = self.root / "base"
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

    def round_model(self, round_: int, rounds: int) -> Path:
        """The model a round ends with: round1/, round2/, .., and final/ for the last. Round 0 is
        base/.
        """
        if round_ == 0:
            return self.base
        return self.root / ("final" if round_ == rounds else f"round{round_}")

    def export(self, tag: str, round_: int, rounds: int) -> Path:
        """Where a phase's full model goes: phase B's is the round's, every other one stays in
        checkpoints/.
        """
        is_last_phase = tag == f"pi{round_}_phaseB"
        return (
            self.round_model(round_, rounds) if is_last_phase else self.checkpoints(tag) / "export"
        )


def claim(recipe: Recipe) -> Run:
    """The recipe's run directory, created or continued.

    Raises UserError when the directory holds a run of another recipe: mixing two would corrupt
    both. What does not shape a model (NOT_SHAPING: how it is served and asked, on how many ranks it
    is trained, when it is saved) may change between two commands; config.yaml keeps the last.
    """
    check_files(recipe)
    run = Run.of(recipe)
    text = dump(recipe)
    if run.config.is_file():
        old = run.config.read_text()
        difference = _first_difference(_shaping(old), _shaping(text))
        if difference:
            raise UserError(
                f"{run.config}: this run was made with another recipe ({difference});"
                f" give this one its own --set name=OTHER, or delete {run.root}"
            )
        if old != text and rank() == 0:
            write_text_atomic(run.config, text)
        return run
    if run.root.exists() and any(run.root.iterdir()):
        raise UserError(
            f"{run.root}: not empty and not a run of abscot (no config.yaml); use --set name=OTHER"
        )
    run.root.mkdir(parents=True, exist_ok=True)
    write_text_atomic(run.config, text)
    return run


NOT_SHAPING = {
    "inference",
    "eval",
    "hang_minutes",
    "trackers",
    "train.num_gpus",
    "train.deepspeed",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_minutes",
    "train.keep_checkpoints",
}


def _shaping(text: str) -> dict[str, object]:
    """The recipe's keys that shape what is trained, flat: `train.lr` -> value."""
    import yaml

    flat = {}
    for section, value in yaml.safe_load(text).items():
        keys = (
            {f"{section}.{key}": v for key, v in value.items()}
            if isinstance(value, dict)
            else {section: value}
        )
        flat |= {key: v for key, v in keys.items() if not {section, key} & NOT_SHAPING}
    return flat


def _first_difference(old: dict, new: dict) -> str | None:
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            return f"{key} is {old.get(key)!r} there, {new.get(key)!r} here"
    return None


def write_text_atomic(path: Path, text: str) -> None:
    """`path` holds either its old content or all of `text`, whatever is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temp, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temp, path)


def write_json_atomic(path: Path, value) -> None:
    write_text_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def publish(final: Path, meta: dict | None = None):
    """Yields a temporary directory that becomes `final` at the end, DONE file and all, or not at
    all.

    The caller may fill `meta` while it works; it is stored in DONE. An old unfinished `final` is
    replaced.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temp = final.with_name(f".{final.name}.partial")
    if temp.exists():
        shutil.rmtree(temp)
    temp.mkdir()
    yield temp
    seal(temp, meta)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temp, final)
    _fsync(final.parent)


def seal(directory: Path, meta: dict | None = None, known: dict[str, str] | None = None) -> None:
    """Writes DONE: the checksums of every file of `directory`, and `meta`. known: name -> checksum
    of files on disk.
    """
    sums = dict(known or {})
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != DONE):
        name = str(path.relative_to(directory))
        if name not in sums:
            sums[name] = sha256_on_disk(path)
    write_json_atomic(directory / DONE, {"files": dict(sorted(sums.items())), "meta": meta or {}})


def sha256_on_disk(path: Path) -> str:
    """The checksum of a file that is then safe from a power cut."""
    _fsync(path)
    return sha256_file(path)


def is_done(directory: Path) -> bool:
    return (directory / DONE).is_file()


def read_done(directory: Path) -> dict:
    """DONE's `meta`. Raises UserError where the directory is unfinished."""
    if not is_done(directory):
        raise UserError(
            f"{directory}: not finished (no {DONE} file); run launch/round.py --round all to make "
            "it"
        )
    return json.loads((directory / DONE).read_text())["meta"]


def fingerprint(directory: Path) -> str:
    """One hash of a published directory's content, from the checksums in DONE: no file is read
    again.
    """
    sums = json.loads((directory / DONE).read_text())["files"]
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def verify(directory: Path, part: int = 0, parts: int = 1) -> None:
    """Raises UserError naming the first file of a published directory that is missing or damaged.

    With `parts`, only every parts-th file is looked at, from number `part` on.
    """
    read_done(directory)
    files = json.loads((directory / DONE).read_text())["files"]
    for name, expected in list(files.items())[part::parts]:
        path = directory / name
        if not path.is_file():
            raise UserError(
                f"{path}: missing, though {directory / DONE} lists it; delete {directory} and run "
                "again"
            )
        if sha256_file(path) != expected:
            raise UserError(
                f"{path}: checksum differs from {directory / DONE}; delete {directory} and run "
                "again"
            )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
