"""Files of a model directory that somebody else made: JSON, and safetensors that are read without
being trusted. Nothing pickled is opened.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from abscot.common import files
from abscot.common.errors import UserError, shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf")
MOST_JSON_BYTES = 256 << 20  # the largest tokenizer.json of today has a tenth of it


def said(error: BaseException | str, most: int = 240) -> str:
    """What an error of a library says, on one printable line."""
    return shown(" ".join(str(error).split()) or type(error).__name__, most)


def read_json(path: Path, where: str) -> dict:
    """The mapping in a JSON file. Raises UserError with `where`, the file, and what is wrong."""
    if not path.is_file():  # a directory, a pipe that nobody writes to
        raise UserError(f"{where}: no {path.name}")
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise UserError(f"{where}: {path.name}: more than {MOST_JSON_BYTES >> 20} MiB")
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where}: {path.name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {path.name}: not text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: {path.name}:{error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; 100,000 brackets
        raise UserError(f"{where}: {path.name}: not readable JSON ({said(error)})") from None
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise UserError(f"{where}: {path.name}: expected a mapping, found a {kind}")
    return tree


def weight_files(directory: Path, where: str) -> list[Path]:
    """The safetensors files of a model, each one there. Raises UserError."""
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() and index.exists():
        raise UserError(f"{where}: both {SINGLE} and {INDEX}; move away the one that is not meant")
    if single.is_file():
        return [single]
    if not index.exists():
        pickled = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLED)
        found = f"{pickled[0]} is not read, for it may run code; " if pickled else ""
        raise UserError(
            f"{where}: no {SINGLE} and no {INDEX}; {found}save the model as safetensors "
            "(transformers' save_pretrained does)"
        )
    shards = read_json(index, where).get("weight_map")
    names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
    if not names:
        raise UserError(f"{where}: {INDEX}: expected a weight_map of tensor names to files")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{where}: {INDEX}: {said(name)}: not the name of a safetensors file")
        if not (directory / name).is_file():
            raise UserError(f"{where}: {name}: missing, though {INDEX} names it; download it again")
    _check_index(directory, shards, names, where)
    return [directory / name for name in names]


def _check_index(directory: Path, shards: dict, names: list[str], where: str) -> None:
    held = {name: tensor_shapes([directory / name], where) for name in names}
    for tensor, name in shards.items():
        if tensor not in held[str(name)]:
            raise UserError(f"{where}: {INDEX}: {said(tensor)} is not in {name}")


def tensor_shapes(paths: list[Path], where: str) -> dict[str, tuple[int, ...]]:
    """name -> shape of every tensor, from the headers alone. Raises UserError for a cut file."""
    shapes = {}
    for path in paths:
        with opened(path, where) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def kinds(paths: list[Path], where: str) -> dict[str, str]:
    """name -> kind of number, as safetensors writes it (BF16), of every tensor."""
    found = {}
    for path in paths:
        with opened(path, where) as file:
            found |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found


@contextlib.contextmanager
def opened(path: Path, where: str) -> Iterator:
    """A safetensors file. Raises UserError where it is none, or where its end is missing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{where}: {path.name}: not a whole safetensors file ({said(error)}); download it again"
        ) from None


def check_finite(paths: list[Path], where: str) -> None:
    """Raises UserError for a NaN or an infinity; one tensor is looked at after the other."""
    for path in paths:
        with opened(path, where) as file:
            for name in file.keys():  # noqa: SIM118
                if not _is_finite(file.get_tensor(name)):
                    raise UserError(f"{where}: {path.name}: {said(name)} holds NaN or infinity")


def _is_finite(tensor) -> bool:
    """A NaN is the smallest and the largest of its tensor: no copy is made, as isfinite makes."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = tensor if tensor.element_size() > 1 else tensor.float()
    return all(torch.isfinite(end) for end in torch.aminmax(wide))


@dataclass(frozen=True)
class Notes:
    """What was found out about large files, by path, size and time of change, so that it need not
    be read again: a checksum, of a file that passed the checks. Kept in a JSON file.
    """

    path: Path

    @functools.cached_property
    def known(self) -> dict[str, str]:
        """Nothing where the file is not there or not whole: then it is found out again."""
        with contextlib.suppress(UserError):
            tree = read_json(self.path, str(self.path))
            return {key: value for key, value in tree.items() if isinstance(value, str)}
        return {}

    def get(self, path: Path) -> str | None:
        return self.known.get(_state(path))

    def add(self, sums: dict[Path, str]) -> None:
        """Writes nothing where there is no directory for it yet, or nothing is new."""
        new = {_state(path): digest for path, digest in sums.items()}
        if self.path.parent.is_dir() and not new.items() <= self.known.items():
            files.write_json_atomic(self.path, self.known | new)


def _state(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def fingerprint(directory: Path, paths: list[Path], notes: Notes) -> str:
    """One hash of what a model computes: of DONE where there is one, else of the weights, the
    config and the tokenizer, read whole unless `notes` knows them.
    """
    named = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
    paths = [*paths, *(p for p in (directory / name for name in named) if p.is_file())]
    sums = {path: notes.get(path) or files.sha256_file(path) for path in paths}
    notes.add(sums)
    if files.is_done(directory):
        return files.fingerprint(directory)
    text = json.dumps({path.name: digest for path, digest in sums.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
