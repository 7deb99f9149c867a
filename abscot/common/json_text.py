"""JSON that others wrote, strictly: what a lenient reader guesses at is refused."""

import json
from collections.abc import Callable
from typing import Any

from abscot.common.errors import shown


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError with a short reason, for a key that stands twice
    in an object, NaN and Infinity, numbers of thousands of digits and nesting without end too.
    """
    return _reasoned(DECODER.decode, text)


def parse_at(text: str, at: int) -> tuple[Any, int]:
    """(the value that begins at `at`, where it ends). Raises ValueError as `parse` does."""
    return _reasoned(DECODER.raw_decode, text, at)


def _reasoned(decode: Callable, *arguments) -> Any:
    try:
        return decode(*arguments)
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from None
    except ValueError as error:  # ours, or an integer of too many digits
        raise ValueError(str(error).partition(";")[0]) from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def kind(value: Any) -> str:
    """What a JSON value is, for messages: `text "abc"`, `a number`, `null`."""
    if isinstance(value, str):
        return f'text "{shown(value)}"' if value.strip() else "empty text"
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f'key "{shown(twice)}" stands there twice')
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)
