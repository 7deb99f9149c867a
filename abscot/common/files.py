"""Files that are there whole or not at all: temp, fsync, rename, DONE with checksums."""

import contextlib
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pydantic

from abscot.common import ranks
from abscot.common.disk import naming
from abscot.common.errors import DamagedInput, MissingInput, UserError
from abscot.common.record import Record

DONE = "DONE"
HASHING_THREADS = 8  # at most: more wait for the disk
# Files that change what is loaded from a directory, though DONE does not list them.
LOADED_SUFFIXES = (".safetensors", ".bin", ".json", ".py", ".arrow")


def write_text_atomic(path: Path, text: str) -> None:
    """`path` holds either its old content or all of `text`, whatever is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path), removed_on_error(temp):
        with open(temp, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)


@contextlib.contextmanager
def removed_on_error(temp: Path):
    """What is half-written takes no room on a disk that is full."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temp) if temp.is_dir() else temp.unlink(missing_ok=True)
        raise


def write_json_atomic(path: Path, value) -> None:
    write_text_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def publish(final: Path, meta: dict | None = None, known: dict[str, str] | None = None):
    """Yields a temporary directory that becomes `final` at the end, DONE file and all, or not at
    all. An error in between removes the temporary one.

    The caller may fill `meta` and `known` (see `seal`) while it works; they are stored in DONE. An
    old unfinished `final` is replaced. Raises UserError, before any work, where something else has
    its place.
    """
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        raise UserError(f"{final}: a link or a file where a directory is made; remove it")
    final.parent.mkdir(parents=True, exist_ok=True)
    temp = final.with_name(f".{final.name}.partial")
    if temp.exists():
        shutil.rmtree(temp)
    with naming(final), removed_on_error(temp):
        temp.mkdir()
        yield temp
        seal(temp, meta, known)
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


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if str(path) != name or path.is_absolute() or ".." in path.parts or not name.isprintable():
        raise ValueError("expected the name of a file inside the directory")
    return name


FileName = Annotated[str, pydantic.AfterValidator(_inside)]
Checksum = Annotated[str, pydantic.StringConstraints(pattern="^[0-9a-f]{64}$")]


class Done(Record):
    """DONE: the checksums of a directory's files, which it vouches for, and what is known of it."""

    files: dict[FileName, Checksum]
    meta: dict[str, Any]

    @classmethod
    def of_directory(cls, directory: Path) -> "Done":
        """Raises MissingInput where the directory is unfinished, DamagedInput where its DONE is."""
        if not is_done(directory):
            raise MissingInput(directory, f"not finished (no {DONE} file)")
        try:
            return cls.read(directory / DONE, mend="")
        except UserError as error:
            raise DamagedInput(directory, str(error)) from None


def read_done(directory: Path) -> dict:
    """DONE's `meta`. Raises MissingInput where the directory is unfinished or its DONE damaged."""
    return Done.of_directory(directory).meta


def fingerprint(directory: Path) -> str:
    """One hash of a published directory's content, from the checksums in DONE: no file is read
    again. Raises as `read_done` does.
    """
    sums = Done.of_directory(directory).files
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def verify(*directories: Path, part: int = 0, parts: int = 1) -> int:
    """Reads the files that the DONE of each directory lists; returns how many bytes.

    With `parts`, only every parts-th file, the largest first, from number `part` on. Raises
    DamagedInput for one that is missing or not what was written.
    """
    listed = [
        (_size(directory, name), directory, name, checksum)
        for directory in directories
        for name, checksum in Done.of_directory(directory).files.items()
    ]
    mine = sorted(listed, key=lambda file: -file[0])[part::parts]
    with ThreadPoolExecutor(min(HASHING_THREADS, ranks.cores_per_rank())) as threads:
        list(threads.map(_check_file, mine))
    return sum(size for size, *_ in mine)


def refuse_unlisted(*directories: Path) -> None:
    """Raises UserError for a file that would be loaded from a published directory, though its DONE
    does not list it.
    """
    for directory in directories:
        for name in unlisted(directory):
            if name.endswith(LOADED_SUFFIXES):
                raise UserError(
                    f"{directory / name}: not of this directory ({DONE} does not list it), but it "
                    "would be loaded; remove it"
                )


def _size(directory: Path, name: str) -> int:
    path = directory / name
    if not path.is_file():
        raise DamagedInput(directory, f"{path}: missing, though {DONE} lists it")
    return path.stat().st_size


def _check_file(file: tuple[int, Path, str, str]) -> None:
    _, directory, name, expected = file
    path = directory / name
    try:
        same = sha256_file(path) == expected
    except OSError as error:
        raise DamagedInput(directory, f"{path}: cannot be read ({error.strerror})") from None
    if not same:
        raise DamagedInput(directory, f"{path}: checksum differs from {DONE}")


def unlisted(directory: Path) -> list[str]:
    """Names of the files and links in a published directory that its DONE does not list."""
    known = {DONE, *Done.of_directory(directory).files}
    found = (p for p in directory.rglob("*") if p.is_symlink() or not p.is_dir())
    return sorted({p.relative_to(directory).as_posix() for p in found} - known)


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
