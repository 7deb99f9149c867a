"""A value that a recipe cannot have -> the place, and the words that a user reads."""

import dataclasses
import difflib
import json
import typing
from typing import Any

import pydantic

from abscot.common.errors import shown
from abscot.recipe.bounds import Rule
from abscot.recipe.schema import Recipe
from abscot.recipe.yaml_text import Place

# Keys of older recipes, and what they are now.
MOVED = (
    {f"train.{key}": f"optimizer.{key}" for key in ("weight_decay", "beta1", "beta2")}
    | {f"eval.{key}": f"eval.answer_{key}" for key in ("temperature", "top_p")}
    | {"train.schedule": "train.lr_schedule"}
    | {"inference.chunk_rows": "inference.chunk_tokens, in tokens and not rows,"}
)


def first_mistake(error: pydantic.ValidationError) -> tuple[Place, str]:
    """(place of the value, what is wrong with it): unknown keys first, for what follows from them
    is no mistake of its own.
    """
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda e: e["type"] != "unexpected_keyword_argument")
    place = tuple(part for part in first["loc"] if part != "[key]")
    if first["type"] == "unexpected_keyword_argument":
        return place, _unknown(place)
    if choice := _choice_in(place):
        return choice, f"{_dotted(choice)}: {_sentence(_rule_at(choice), first['input'])}"
    if first["type"] == "value_error" and not _is_leaf(place):
        key, _, words = str(first["ctx"]["error"]).partition(": ")
        place = (*place, *key.split("."))
    else:
        words = _expected(first, place)
    return place, f"{_dotted(place)}: {words}"


def _unknown(place: Place) -> str:
    key, known = _dotted(place), [field.name for field in dataclasses.fields(_type_at(place[:-1]))]
    if moved := MOVED.get(key):
        return f"unknown key {key}; it is {moved} now"
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    hint = (
        f"did you mean {_dotted((*place[:-1], near[0]))}?"
        if near
        else f"known here: {', '.join(known)}"
    )
    return f"unknown key {shown(key)}; {hint}"


_WORDS = {  # pydantic's type of an error -> what was expected
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_long": "at most {max_length:,} characters",
    "list_type": "a list, e.g. [one, two]",
    "too_short": "at least {min_length} entry",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping of keys",
    "literal_error": "one of {expected}",
}


def _expected(error: dict, place: Place) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "string_pattern_mismatch":
        words = _rule_at(place)
    elif error["type"] in _WORDS:
        context = dict(error.get("ctx") or {})
        if "expected" in context:
            context["expected"] = context["expected"].replace("'", "").replace(" or ", ", ")
        words = _WORDS[error["type"]].format(**context)
    else:
        words = error["msg"]
    near = ""
    if error["type"] == "literal_error":
        known = words.removeprefix("one of ").split(", ")
        close = difflib.get_close_matches(str(error["input"]), known, n=1)
        near = f"; did you mean {close[0]}?" if close else ""
    return f"{_sentence(words, error['input'])}{near}"


def _sentence(expected: str, value: Any) -> str:
    return f"expected {expected}, found {found(value)}"


def _choice_in(place: Place) -> Place | None:
    """The place of the value in `place` that may be of several types: behind it pydantic names the
    type that it has tried, first the one that has the whole value as its input.
    """
    hint = Recipe
    for depth, key in enumerate(place):
        if inner := _section_of(hint):
            hint = typing.get_type_hints(inner, include_extras=True)[key]
        elif typing.get_origin(plain := _plain(hint)) in (dict, list):
            hint = typing.get_args(plain)[-1]
        elif len([o for o in typing.get_args(plain) if o is not type(None)]) > 1:
            return place[:depth]
    return None


def _plain(hint: Any) -> Any:
    """A type without what is annotated to it."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _rule_at(place: Place) -> str:
    """The words of the rule beside the type of the value at `place`."""
    todo = [_annotation_at(place)]
    while todo:
        hint = todo.pop()
        if rules := [m.words for m in getattr(hint, "__metadata__", ()) if isinstance(m, Rule)]:
            return rules[0]
        todo += typing.get_args(hint)
    return "other text"


def _annotation_at(place: Place) -> Any:
    """The annotation of the field that `place` is in."""
    cls = Recipe
    for depth, key in enumerate(place):
        hint = typing.get_type_hints(cls, include_extras=True)[key]
        inner = _section_of(hint)
        if inner is None or depth + 1 == len(place):
            return hint
        cls = inner
    return cls


def _section_of(hint: Any) -> type | None:
    options = (hint, *typing.get_args(hint))
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


def _type_at(place: Place) -> type:
    return _section_of(_annotation_at(place)) if place else Recipe


def _is_leaf(place: Place) -> bool:
    return bool(place) and _section_of(_annotation_at(place)) is None


def _dotted(place: Place) -> str:
    """A place as people write it: `eval.modes[0]`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{shown(part)}" for part in place)
    return "".join(parts).removeprefix(".")


def found(value: Any) -> str:
    """A value as a recipe writes it, for a message."""
    return "nothing" if value is None else shown(json.dumps(value))
