"""What a single value of a recipe may be: the types of the schema's fields."""

import itertools
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic.dataclasses import dataclass as checked_dataclass

# A recipe is data: no key that is not known, no text for a number, no NaN.
NAME_BYTES = 100  # of a run; names of its files are longer
CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def section(cls: type) -> type:
    """A dataclass whose fields are checked when it is made, also by `dataclasses.replace`."""
    return checked_dataclass(cls, config=CONFIG)


@dataclass(frozen=True)
class Rule:
    """Beside a type: what a value must be, in words that follow `expected`."""

    words: str


def _printable(text: str) -> str:
    if bad := [char for char in text if not char.isprintable() and char not in "\n\t"]:
        raise ValueError(f"expected text without control characters, found {bad[0]!r}")
    return text


def _short(name: str) -> str:
    if len(name.encode()) > NAME_BYTES:
        raise ValueError(f"expected at most {NAME_BYTES} bytes, found {len(name.encode())}")
    return name


def _different(values: list) -> list:
    if twice := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ValueError(f"expected each name once, found {twice[0]!r} twice")
    return values


T = TypeVar("T")
Count = Annotated[int, Field(ge=1, le=10**12)]
Amount = Annotated[int, Field(ge=0, le=10**12)]
Few = Annotated[int, Field(ge=1, le=10_000)]  # of what is listed, started or repeated one by one
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Rate = Annotated[float, Field(gt=0, le=1)]  # a learning rate, a share that is not nothing
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Spread = Annotated[float, Field(ge=0, le=10)]
Temperature = Annotated[float, Field(ge=0, le=10)]
Paragraph = Annotated[str, StringConstraints(max_length=100_000), AfterValidator(_printable)]
Line = Annotated[
    str,
    StringConstraints(pattern=r"^[^\s][^\n\t]*$", max_length=4000),
    AfterValidator(_printable),
    Rule("a line of text, not empty"),
]
Name = Annotated[
    str,
    StringConstraints(pattern=r"^\w[\w.+=-]*$"),
    AfterValidator(_short),
    Rule("a plain directory name: letters, digits and _ . + = -"),
]
Url = Annotated[
    str,
    StringConstraints(pattern=r"^(?i:https?)://[^\s/]+[^\s]*$", max_length=4000),
    AfterValidator(_printable),
    Rule("an address such as http://localhost:8000/v1"),
]
Some = Annotated[list[T], Field(min_length=1)]
Epochs = Annotated[int, Field(ge=0, le=10_000)]
EpochsByRound = Annotated[
    Epochs | Some[Epochs], Rule("a whole number from 0 to 10,000, or a list of them, one a round")
]
Each = Annotated[list[T], AfterValidator(_different)]  # a list that names nothing twice


def ascending(**values: int) -> None:
    """Raises ValueError for the first value that is larger than the next one."""
    for (key, low), (next_key, high) in itertools.pairwise(values.items()):
        if low > high:
            raise ValueError(f"{key}: expected at most {next_key} ({high}), found {low}")
