"""A table of text cells, as Markdown, HTML and terminal text."""

import html
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """Rows of text cells; the first `left` columns are left-aligned, the others are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    missing: frozenset[int] = frozenset()  # row numbers of what does not exist yet

    def markdown(self) -> str:
        def line(cells):
            return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"

        rule = (
            "|"
            + "|".join(":--" if i < self.left else "--:" for i in range(len(self.columns)))
            + "|"
        )
        return "\n".join([line(self.columns), rule, *map(line, self.rows)])

    def html(self, images: Path) -> str:
        def line(cells, tag, attribute=""):
            marks = [" class=left" if i < self.left else "" for i in range(len(cells))]
            inside = "".join(
                f"<{tag}{m}>{html.escape(c)}</{tag}>" for m, c in zip(marks, cells, strict=True)
            )
            return f"<tr{attribute}>{inside}</tr>"

        body = [
            line(r, "td", " class=missing" if i in self.missing else "")
            for i, r in enumerate(self.rows)
        ]
        head = line(self.columns, "th")
        table = f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
        return f"<div class=wide>{table}</div>"

    def text(self) -> str:
        """Aligned columns for a terminal."""
        table = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.columns))]

        def line(row):
            cells = [
                c.ljust(w) if i < self.left else c.rjust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        return "\n".join(
            [line(self.columns), "  ".join("─" * w for w in widths), *map(line, self.rows)]
        )


def escape_markdown(text: str) -> str:
    """One line in which no character of a name or a message acts as markup."""
    return re.sub(r"([\\`*|<>\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
