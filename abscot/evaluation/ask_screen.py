"""What a reader sees of answers that are being made: in a terminal, as plain text, as JSON."""

import colorsys
import functools
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from abscot.common.errors import UserError
from abscot.evaluation.ask_model import STOPPED, Told
from abscot.evaluation.ask_text import THOUGHT, TRACE, Piece
from abscot.method.vocab import token_name

SIDE_BY_SIDE = 100  # columns of a terminal in which two answers stand beside each other
GOLDEN = 0.618034  # of a turn: hues of neighbouring codes lie far apart

# (which of the models, what came of it), the answers one after the other.
Event = tuple[int, Piece | Told | UserError]


@dataclass(frozen=True)
class Title:
    """Of a model's answers."""

    model: str
    mode: str

    def __str__(self) -> str:
        return f"{self.model}, {self.mode}"


def summary(told: Told) -> str:
    """`trace 8 + answer 5 = 13 tokens, 0.05 s, 260 tokens/s`"""
    rate = f"{told.seconds:.2f} s, {told.tokens / max(told.seconds, 1e-9):,.0f} tokens/s"
    answer = told.answer
    if answer is None:
        return f"{STOPPED} behind {told.tokens} tokens, {rate}"
    parts = f"{answer.n_total_tokens} tokens"
    if answer.n_reasoning_tokens:
        first = "trace" if answer.trace_ids else "thought"
        parts = f"{first} {answer.n_reasoning_tokens} + answer {answer.n_response_tokens} = {parts}"
    cut = ", cut at the limit (eval.max_answer_tokens)" if told.finish_reason == "length" else ""
    return f"{parts}, {rate}{cut}"


def written(piece: Piece, begun: bool) -> Text:
    """begun: whether a piece of the same kind stands before it."""
    if piece.kind == TRACE:
        name = token_name(piece.text)
        return Text(" " * begun).append(name, f"bold {_colour(name)}")
    return Text(_harmless(piece.text), "dim" if piece.kind == THOUGHT else "")


@functools.cache
def _colour(name: str) -> str:
    place = functools.reduce(lambda n, letter: 26 * n + ord(letter) - ord("A") + 1, name, 0)
    red, green, blue = colorsys.hls_to_rgb(place * GOLDEN % 1, 0.55, 0.7)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _harmless(text: str) -> str:
    """Without what would steer the terminal."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) != "Cc"
        else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def show(console: Console, titles: list[Title], events: Iterable[Event]) -> None:
    """Answers to one question as they come; in a wide terminal two beside each other."""
    if console.is_terminal and len(titles) > 1 and console.width >= SIDE_BY_SIDE:
        _side_by_side(console, titles, events)
    else:
        _one_after_the_other(console, titles, events)


def _one_after_the_other(console: Console, titles: list[Title], events: Iterable[Event]) -> None:
    said, at, kind = Console(stderr=True, highlight=False), None, None

    def put(text: Text, end: str = "\n", to: Console = console) -> None:
        to.print(text, end=end, soft_wrap=True)

    for index, event in events:
        if index != at and len(titles) > 1:
            put(Text(f"{titles[index]}:", "bold"))
        at, before = index, kind
        kind = event.kind if isinstance(event, Piece) else None
        if before and kind != before:
            put(Text())  # ends its line
        if isinstance(event, Piece):
            put(written(event, begun=kind == before), end="")
        else:
            put(_end(event), to=console if isinstance(event, Told) else said)


def _end(event: Told | UserError) -> Text:
    if isinstance(event, Told):
        return Text(summary(event), "italic dim")
    return Text(f"error: {event}", "red")


@dataclass
class _Column:
    """One answer. text: so far; end: the line below it."""

    title: Title
    text: Text = field(default_factory=Text)
    kind: str | None = None
    end: Text = field(default_factory=Text)

    def take(self, event: Piece | Told | UserError) -> None:
        if isinstance(event, Piece):
            begun = self.kind == event.kind
            if self.kind and not begun:
                self.text.append("\n")
            self.text.append_text(written(event, begun))
            self.kind = event.kind
        else:
            self.end = _end(event)

    def panel(self, console: Console, width: int, most_lines: int | None) -> Panel:
        """most_lines: of the text, the last ones; None: all of it."""
        lines = self.text.wrap(console, width - 4)
        text = Text("\n").join(lines[-most_lines:] if most_lines else lines)
        return Panel(Group(text, self.end), title=Text(str(self.title)), width=width)


def _side_by_side(console: Console, titles: list[Title], events: Iterable[Event]) -> None:
    """While it grows, what the terminal has lines for; at last all of it."""
    columns = [_Column(title) for title in titles]

    def grid(most_lines: int | None = None) -> Table:
        table, width = Table.grid(), console.width // len(columns)
        table.add_row(*(column.panel(console, width, most_lines) for column in columns))
        return table

    with Live(console=console, transient=True, auto_refresh=False) as live:
        for index, event in events:
            columns[index].take(event)
            live.update(grid(max(1, console.height - 5)), refresh=True)
    console.print(grid())


def json_line(question: str, titles: list[Title], events: Iterable[Event]) -> str | None:
    """The answers to a question on one line; None where one is missing or was stopped. Those of the
    first model stand at the top, those of the other under `beside`.
    """
    ends = {index: event for index, event in events if not isinstance(event, Piece)}
    stopped = any(isinstance(end, Told) and end.answer is None for end in ends.values())
    if stopped or len(ends) < len(titles):
        return None
    first, *others = (_record(titles[i], ends[i]) for i in sorted(ends))
    beside = {"beside": others[0]} if others else {}
    return json.dumps({"question": question, **first, **beside}, ensure_ascii=False)


def _record(title: Title, end: Told | UserError) -> dict:
    named = {"model": title.model, "mode": title.mode}
    if isinstance(end, UserError):
        return {**named, "error": str(end)}
    rate = end.tokens / max(end.seconds, 1e-9)
    times = {"seconds": round(end.seconds, 4), "tokens_per_s": round(rate, 1)}
    return {**named, **end.answer.model_dump(), **times}
