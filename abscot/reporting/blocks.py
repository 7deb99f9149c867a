"""The blocks of a report and their renderings: Markdown, self-contained HTML, terminal text."""

import base64
import hashlib
import html
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from abscot.common.table import Table, escape_markdown

CSS = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --paper: #fff;
        --tint: #f4f6f9; --alarm: #9a3412; --alarm-tint: #fff4ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #333b47; --paper: #14181e;
          --tint: #1c222b; --alarm: #fdba74; --alarm-tint: #33220f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 68rem;
       background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem; padding-top: .75rem;
     border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { max-width: 46rem; margin: .6rem 0; }
.note, figcaption { color: var(--soft); font-size: .9rem; max-width: 52rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
         white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th.left, td.left { text-align: left; }
tr.missing td { color: var(--soft); font-style: italic; }
figure { margin: 1.25rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px;
             padding: 4px; border: 1px solid var(--line); }
figcaption { margin-top: .5rem; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px;
      padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
      font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
      margin: .4rem 0 1rem; }
.label { color: var(--soft); font-size: .85rem; margin: .6rem 0 .1rem; }
.warnings { background: var(--alarm-tint); border-left: 4px solid var(--alarm); border-radius: 4px;
            padding: .6rem 1rem .6rem 2rem; }
summary { cursor: pointer; color: var(--soft); }
@media print { body { max-width: none; } details { display: block; } }
"""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2

    def markdown(self) -> str:
        return f"{'#' * self.level} {escape_markdown(self.text)}"

    def html(self, images: Path) -> str:
        return f"<h{self.level}>{html.escape(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Paragraph:
    text: str
    note: bool = False  # small print

    def markdown(self) -> str:
        return escape_markdown(self.text)

    def html(self, images: Path) -> str:
        return f"<p{' class=note' if self.note else ''}>{html.escape(self.text)}</p>"


@dataclass(frozen=True)
class Warnings:
    items: tuple[str, ...]

    def markdown(self) -> str:
        return "\n".join(f"- **Warning:** {escape_markdown(item)}" for item in self.items)

    def html(self, images: Path) -> str:
        items = "".join(f"<li>{html.escape(item)}</li>" for item in self.items)
        return f"<ul class=warnings>{items}</ul>"


@dataclass(frozen=True)
class Figure:
    file: str  # name of a PNG in the report's directory
    caption: str

    def markdown(self) -> str:
        return (
            f"![{escape_markdown(self.caption)}]({self.file})\n\n*{escape_markdown(self.caption)}*"
        )

    def html(self, images: Path) -> str:
        data, caption = (
            base64.b64encode((images / self.file).read_bytes()).decode(),
            html.escape(self.caption),
        )
        image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


@dataclass(frozen=True)
class Code:
    """Text shown as it is: the only block that carries what a model or a data file wrote."""

    label: str
    text: str
    folded: bool = False

    def markdown(self) -> str:
        longest = max((len(run) for run in re.findall(r"`+", self.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{escape_markdown(self.label)}\n\n{fence}text\n{self.text}\n{fence}"

    def html(self, images: Path) -> str:
        label, body = html.escape(self.label), f"<pre>{html.escape(self.text)}</pre>"
        if self.folded:
            return f"<details><summary>{label}</summary>{body}</details>"
        return f"<p class=label>{label}</p>{body}"


@dataclass(frozen=True)
class Explorer:
    """Answers to look through, by explorer.js and explorer.css. tree: as `explorer` makes it."""

    tree: dict

    def markdown(self) -> str:
        return "Traces, one by one, right and wrong: in index.html, which lies beside this file."

    def html(self, images: Path) -> str:
        """The tree goes in as JSON in ASCII without `<`, `>` and `&`: nothing in it can end the
        element that it stands in, open a comment or be a line end to a script.
        """
        text = json.dumps(self.tree, separators=(",", ":"), allow_nan=False)
        for character in "<>&":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return (
            '<section class=explorer id=explorer aria-label="Trace explorer">'
            "<noscript><p>It needs JavaScript. Some answers stand under Examples.</p></noscript>"
            f'</section>\n<script type="application/json" id=explorer-data>{text}</script>\n'
            f"<script>{_beside('explorer.js')}</script>"
        )


def _beside(name: str) -> str:
    """The text of a file of this package."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


Block = Heading | Paragraph | Warnings | Table | Figure | Code | Explorer


def to_markdown(blocks: list[Block]) -> str:
    return "\n\n".join(block.markdown() for block in blocks) + "\n"


def to_html(title: str, blocks: list[Block], images: Path) -> str:
    """One page that needs no other file: the pictures in `images` are embedded, nothing is fetched,
    and its policy lets no script run but the explorer's.
    """
    script = base64.b64encode(hashlib.sha256(_beside("explorer.js").encode()).digest()).decode()
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    )
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}: report</title>\n"
        f"<style>{CSS}{_beside('explorer.css')}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(block.html(images) for block in blocks) + "\n</body>\n</html>\n"
