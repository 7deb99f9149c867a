"""YAML and dotted overrides -> the recipe; a mistake in either is one line that says where."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from abscot.common.errors import UserError, shown
from abscot.common.paths import matching
from abscot.recipe import yaml_text
from abscot.recipe.deepspeed_file import read_deepspeed_file
from abscot.recipe.mistakes import first_mistake, found
from abscot.recipe.schema import Recipe
from abscot.recipe.yaml_text import Place

ROOT = Path(__file__).resolve().parents[2]
FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".zst", ".parquet", ".arrow")
DEFAULT_RECIPE = ROOT / "launch" / "recipes" / "tiny-cpu.yaml"
_CHECKED = pydantic.TypeAdapter(Recipe)


def load_recipe(
    path: str | os.PathLike | None = None, overrides: Sequence[str] | None = None
) -> Recipe:
    """The recipe at `path` (default: tiny-cpu) with `key.path=value` overrides applied.

    Raises UserError, which names file and line or the override, for a missing file, bad YAML, an
    unknown key, and a value or a combination of values that cannot be.
    """
    return _loaded(_RecipeFile(_recipe_path(path)), overrides)


def default_recipe(overrides: Sequence[str]) -> Recipe:
    """What a recipe without a key says, with overrides. Raises UserError as `load_recipe` does."""
    return _loaded(_NoFile(), overrides)


def _loaded(file: "_RecipeFile | _NoFile", overrides: Sequence[str] | None) -> Recipe:
    given = [_Override.of(text) for text in overrides or []]
    tree = file.tree()
    for override in given:
        override.put(tree)
    try:
        return _validated(tree)
    except pydantic.ValidationError as error:
        place, words = first_mistake(error)
    blamed = next((o for o in reversed(given) if o.is_about(place)), None)
    if not blamed and given and _holds(file.tree()):
        blamed = given[-1]  # a rule between keys, which the file alone keeps
    where = f"--set {blamed.text}" if blamed else file.where(place)
    raise UserError(f"{where}: {words}")


def _recipe_path(path: str | os.PathLike | None) -> Path:
    """A file, or the bare name of a shipped recipe. Raises UserError where there is neither."""
    path = Path(path) if path else DEFAULT_RECIPE
    shipped = DEFAULT_RECIPE.parent / f"{path}.yaml"
    if os.path.lexists(path):
        return path
    if os.path.isfile(shipped):
        return shipped
    names = ", ".join(sorted(p.stem for p in DEFAULT_RECIPE.parent.glob("*.yaml")))
    raise UserError(f"{shown(str(path), 200)}: no such recipe; give a file or one of {names}")


def local_path(value: str) -> Path | None:
    """`value` as a local path, or None where it can only be a hub id (owner/name)."""
    path = Path(os.path.expanduser(value))
    is_path = value.startswith((".", "/", "~")) or any(mark in value for mark in "*?[")
    if is_path or value.count("/") != 1 or path.suffix in FILE_SUFFIXES or os.path.exists(path):
        return path
    return None


def check_files(recipe: Recipe) -> None:
    """Raises UserError for a local file that the recipe names and that does not exist, and for a
    DeepSpeed file that cannot be used, before anything is written.
    """
    if (
        recipe.model.base != "world"
        and (path := local_path(recipe.model.base))
        and not os.path.isdir(path)
    ):
        raise UserError(
            f"model.base: {path}: no such directory; give a model directory or a hub id such as "
            "Qwen/Qwen3-4B"
        )
    if (
        recipe.data.source != "world"
        and (path := local_path(recipe.data.source))
        and not matching(recipe.data.source)
    ):
        raise UserError(
            f"data.source: {path}: no such file; give a file, a glob or a hub id such as "
            "allenai/Dolci-Think-SFT-7B"
        )
    config = Path(recipe.train.deepspeed)
    config = config if config.is_absolute() else ROOT / config
    if not os.path.isfile(config):
        shipped = ", ".join(
            sorted(f"ds_configs/{p.name}" for p in (ROOT / "ds_configs").glob("*.json"))
        )
        raise UserError(f"train.deepspeed: {config}: no such file; shipped: {shipped}")
    read_deepspeed_file(config)
    for benchmark, file in recipe.eval.files.items():
        if not matching(file):
            raise UserError(f"eval.files.{benchmark}: {file}: no such file")


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load_recipe` of it gives the same recipe."""
    return yaml_text.dump(dataclasses.asdict(recipe))


class _RecipeFile:
    def __init__(self, path: Path):
        self.path, self.text = path, yaml_text.read(path, "a recipe in YAML")
        self._lines = yaml_text.parse(self.text, str(path))[1]

    def tree(self) -> dict[str, Any]:
        """The file's data, anew."""
        tree = yaml_text.parse(self.text, str(self.path))[0]
        if not isinstance(tree, dict):
            raise UserError(
                f"{self.path}: expected a mapping of recipe keys, found {found(tree)}; "
                "launch/recipes/README.md lists them"
            )
        return tree

    def where(self, place: Place) -> str:
        """The file and the line of the value at `place`, or of the nearest one around it."""
        while place and place not in self._lines:
            place = place[:-1]
        return f"{self.path}:{self._lines[place]}" if place else str(self.path)


class _NoFile:
    def tree(self) -> dict[str, Any]:
        return {"world": {}}  # the defaults name it

    def where(self, place: Place) -> str:
        return "the defaults"


@dataclasses.dataclass(frozen=True)
class _Override:
    text: str
    keys: tuple[str, ...]
    value: Any

    @classmethod
    def of(cls, text: str) -> "_Override":
        key, separator, value = text.partition("=")
        keys = tuple(key.strip().split("."))
        if not separator or not all(keys) or len(keys) > yaml_text.MOST_DEPTH:
            raise UserError(
                f"--set {shown(text)}: expected key.path=value, e.g. --set train.lr=1e-4"
            )
        text = shown(text)
        return cls(text, keys, yaml_text.parse(value, f"--set {text}")[0])

    def put(self, tree: dict) -> None:
        """Raises UserError where a value stands in place of a section."""
        for key in self.keys[:-1]:
            if tree.get(key) is None:
                tree[key] = {}
            tree = tree[key]
            if not isinstance(tree, dict):
                raise UserError(f"--set {self.text}: {key} is a value and has no keys of its own")
        tree[self.keys[-1]] = self.value

    def is_about(self, place: Place) -> bool:
        """Whether the value at `place` came from here."""
        shared = min(len(place), len(self.keys))
        return shared > 0 and place[:shared] == self.keys[:shared]


def _validated(tree: dict) -> Recipe:
    return _CHECKED.validate_json(json.dumps(tree))


def _holds(tree: dict) -> bool:
    try:
        _validated(tree)
    except pydantic.ValidationError:
        return False
    return True
