"""Files that are there whole or not at all: temp, fsync, rename, DONE with checksums."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from abscot.common.errors import MissingInput, UserError

DONE = "DONE"


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
    """DONE's `meta`. Raises MissingInput where the directory is unfinished."""
    if not is_done(directory):
        raise MissingInput(directory, f"not finished (no {DONE} file)")
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


def finished(path: Path) -> bool:
    return path.is_file() if path.suffix else is_done(path)


def require(*paths: Path) -> None:
    """Raises MissingInput for the first of `paths` that is missing or unfinished."""
    for path in paths:
        if not finished(path):
            raise MissingInput(path)
