"""YAML as a recipe needs it: plain data, with the line of every key; and plain data as YAML.

The core schema of YAML 1.2: 1e-4 is a number and `no` is a word, which PyYAML sees otherwise.
Aliases and tags are refused: a recipe is small, and needs none.
"""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from abscot.common.errors import UserError

MOST_BYTES = 1 << 20
MOST_DEPTH = 16
Place = tuple[str | int, ...]  # of a value: keys and list indices, from the root

_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
        r"|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq", *_RESOLVERS)}

_BUILDERS = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text.replace("_", "")),
    "float": lambda text: float(re.sub(r"\.(?=[in])", "", text.replace("_", "").lower())),
    "str": str,
}


def _with_core_schema(base: type) -> type:
    cls = type(f"Core{base.__name__}", (base,), {"yaml_implicit_resolvers": {}})
    for name, (pattern, first) in _RESOLVERS.items():
        cls.add_implicit_resolver(
            f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"), first
        )
    return cls


_Loader = _with_core_schema(yaml.SafeLoader)
_Dumper = _with_core_schema(yaml.SafeDumper)
_Dumper.ignore_aliases = lambda self, data: True


def read(path: Path, what: str) -> str:
    """The text of a small file. Raises UserError where `path` is no regular file of UTF-8 text."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: expected {what}, found something that is no file")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: expected {what}, found {path.stat().st_size:,} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: not UTF-8 text (byte {error.start}); expected {what}; save it as UTF-8"
        ) from None
    except (OSError, ValueError) as error:  # the latter for a name that cannot be one
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}; expected {what}") from None


def parse(text: str, where: str) -> tuple[Any, dict[Place, int]]:
    """(plain data, line of each value by its place). Raises UserError with `where` and the line."""
    lines = {}
    try:
        _refuse_what_is_no_plain_data(text)
        root = yaml.compose(text, Loader=_Loader)
        return (None if root is None else _plain(root, (), lines)), lines
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        line = mark.line + 1 if mark else 1
        raise UserError(f"{where}:{line}: not YAML: {' '.join(problem.split())}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(
            f"{where}:{line}: not YAML: character {chr(error.character)!a} is not allowed"
        ) from None
    except UnicodeEncodeError as error:  # half of a character, written as an escape
        raise UserError(f"{where}: not YAML: {error.object[:40]!a} is no Unicode text") from None


def dump(value: Any) -> str:
    """`value` as YAML text that `parse` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def _refuse_what_is_no_plain_data(text: str) -> None:
    """Before anything is built of it: what would recurse, multiply, or come in several pieces."""
    text.encode()
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if isinstance(event, yaml.AliasEvent):
            _refuse(f"an alias (*{event.anchor}); write the value out", event)
        if depth > MOST_DEPTH:
            _refuse(f"nested more than {MOST_DEPTH} deep", event)
        if documents > 1:
            _refuse("a second document (---); expected one", event)


def _plain(node: yaml.Node, place: Place, lines: dict[Place, int]) -> Any:
    """What a node says; notes the lines of all that is in it."""
    lines.setdefault(place, node.start_mark.line + 1)
    if node.tag not in _PLAIN_TAGS:
        _refuse(f"tag {node.tag.replace('tag:yaml.org,2002:', '!!')}; expected plain values", node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*place, i), lines) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, lines)
    try:
        value = _BUILDERS[node.tag.rpartition(":")[2]](node.value)
    except (ValueError, OverflowError, KeyError):
        _refuse(f"a value that cannot be read: {node.value[:40]!a}", node)
    if isinstance(value, str):
        value.encode()
    return value


def _mapping(node: yaml.MappingNode, place: Place, lines: dict[Place, int]) -> dict[str, Any]:
    found = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            _refuse("a key that is no plain word", key_node)
        key = key_node.value
        key.encode()
        if key in found:
            first = lines[(*place, key)]
            _refuse(
                f"key {key!r} stands here a second time; the first is in line {first}", key_node
            )
        lines[(*place, key)] = key_node.start_mark.line + 1
        found[key] = _plain(value_node, (*place, key), lines)
    return found


def _refuse(problem: str, at: yaml.Node | yaml.Event) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
