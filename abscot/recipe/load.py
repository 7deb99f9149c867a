"""YAML and dotted overrides -> the recipe; unknown keys are refused."""

import dataclasses
import difflib
import os
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Literal

from abscot.common.errors import UserError
from abscot.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]
FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".zst", ".parquet", ".arrow")
# Keys of recipes that were written before the optimizer had a section of its own.
MOVED = {f"train.{key}": f"optimizer.{key}" for key in ("weight_decay", "beta1", "beta2")}
DEFAULT_RECIPE = ROOT / "launch" / "recipes" / "tiny-cpu.yaml"


def load_recipe(
    path: str | os.PathLike | None = None, overrides: list[str] | None = None
) -> Recipe:
    """The recipe at `path` (default: tiny-cpu) with `key.path=value` overrides applied.

    Raises UserError for a missing file, bad YAML, an unknown key or a value of the wrong type.
    """

    path = _recipe_path(path)
    if not path.is_file():
        shipped = ", ".join(sorted(p.name for p in DEFAULT_RECIPE.parent.glob("*.yaml")))
        raise UserError(f"{path}: no such recipe; shipped in launch/recipes: {shipped}")
    tree = _parse_yaml(path.read_text(), str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of recipe keys, found {type(tree).__name__}")
    for override in overrides or []:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f"--set {override}: expected key.path=value, e.g. --set train.lr=1e-4")
        _put(tree, key.strip().split("."), _parse_yaml(value, f"--set {override}"))
    recipe = _build(Recipe, tree, str(path), "")
    _check(recipe, str(path))
    return recipe


def _recipe_path(path: str | os.PathLike | None) -> Path:
    """A file, or the bare name of a shipped recipe."""
    path = Path(path) if path else DEFAULT_RECIPE
    shipped = DEFAULT_RECIPE.parent / f"{path}.yaml"
    return shipped if not path.is_file() and shipped.is_file() else path


def local_path(value: str) -> Path | None:
    """`value` as a local path, or None where it can only be a hub id (owner/name)."""
    path = Path(value).expanduser()
    is_path = value.startswith((".", "/", "~")) or any(mark in value for mark in "*?[")
    if is_path or value.count("/") != 1 or path.suffix in FILE_SUFFIXES or path.exists():
        return path
    return None


def check_files(recipe: Recipe) -> None:
    """Raises UserError for a local file that the recipe names and that does not exist, before
    anything is written.
    """
    if (
        recipe.model.base != "world"
        and (path := local_path(recipe.model.base))
        and not path.is_dir()
    ):
        raise UserError(
            f"model.base: {path}: no such directory; give a model directory or a hub id such as "
            "Qwen/Qwen3-4B"
        )
    if (
        recipe.data.source != "world"
        and (path := local_path(recipe.data.source))
        and not any(path.parent.glob(path.name))
    ):
        raise UserError(
            f"data.source: {path}: no such file; give a file, a glob or a hub id such as "
            "allenai/Dolci-Think-SFT-7B"
        )
    config = Path(recipe.train.deepspeed)
    config = config if config.is_absolute() else ROOT / config
    if not config.is_file():
        shipped = ", ".join(
            sorted(f"ds_configs/{p.name}" for p in (ROOT / "ds_configs").glob("*.json"))
        )
        raise UserError(f"train.deepspeed: {config}: no such file; shipped: {shipped}")
    for benchmark, file in recipe.eval.files.items():
        if not Path(file).expanduser().is_file():
            raise UserError(f"eval.files.{benchmark}: {file}: no such file")


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load_recipe` of it gives the same recipe."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False)


def _parse_yaml(text: str, where: str):
    import yaml

    try:
        return yaml.load(text, Loader=_float_loader())
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def _float_loader():
    """PyYAML reads 1e-4 as a string (YAML 1.1); recipes are full of such numbers."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
    return Loader


def _put(tree: dict, keys: list[str], value) -> None:
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[keys[-1]] = value


def _build(cls, tree: dict, where: str, prefix: str):
    known = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        if key not in known:
            if moved := MOVED.get(prefix + str(key)):
                raise UserError(f"{where}: unknown key {prefix}{key}; it is {moved} now")
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {prefix}{key}; {hint}")
        values[key] = _convert(hints[key], value, where, prefix + str(key))
    return cls(**values)


def _convert(hint, value, where: str, key: str):
    """`value` as the type `hint`, or a UserError that says what was expected."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where, key)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where}: {key}: expected a mapping, found {value!r}")
        return _build(hint, value, where, key + ".")
    if origin is Literal:
        if value not in args:
            raise UserError(
                f"{where}: {key}: expected one of {', '.join(map(str, args))}, found {value!r}"
            )
        return value
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{where}: {key}: expected a list, found {value!r}")
        return [_convert(args[0], item, where, f"{key}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: {key}: expected a mapping, found {value!r}")
        return {
            _convert(args[0], k, where, key): _convert(args[1], v, where, f"{key}.{k}")
            for k, v in value.items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where}: {key}: expected {hint.__name__}, found {value!r}")
    return value


def _check(recipe: Recipe, where: str) -> None:
    """What types cannot say."""
    train, traces = recipe.train, recipe.traces
    positive = {
        "rounds": recipe.rounds,
        "hang_minutes": recipe.hang_minutes,
        "codebook_size": recipe.codebook_size,
        "train.capacity_tokens": train.capacity_tokens,
        "train.epochs": train.epochs,
        "train.lr": train.lr,
        "traces.m_max": traces.m_max,
        "eval.samples": recipe.eval.samples,
    }
    for key, value in positive.items():
        if value <= 0:
            raise UserError(f"{where}: {key}: expected a number above 0, found {value}")
    if not 0 <= traces.m_min <= traces.m_max:
        raise UserError(
            f"{where}: traces.m_min: expected 0 <= m_min <= m_max ({traces.m_max}), found "
            f"{traces.m_min}"
        )
    if (train.global_batch_examples is None) == (train.global_batch_tokens is None):
        raise UserError(
            f"{where}: train: set exactly one of global_batch_examples and global_batch_tokens"
        )
    if not recipe.name or Path(recipe.name).name != recipe.name or recipe.name.startswith("."):
        raise UserError(f"{where}: name: expected a plain directory name, found {recipe.name!r}")
    if recipe.world is None and "world" in (recipe.model.base, recipe.data.source):
        raise UserError(
            f"{where}: world: model.base or data.source is `world`, so the recipe needs a world "
            "section"
        )
