"""The recipe's keys as a page: launch/recipes/README.md, made from the dataclasses and the comments
beside their fields.

  python -m abscot.recipe.keys      writes it anew
"""

import ast
import dataclasses
import io
import tokenize
import typing
from pathlib import Path
from types import NoneType

import yaml

from abscot.common.files import write_text_atomic
from abscot.recipe import schema, schema_train
from abscot.recipe.load import ROOT
from abscot.recipe.schema import Recipe

PAGE = ROOT / "launch" / "recipes" / "README.md"
HEAD = """\
# Recipes

A recipe is a YAML file; `--recipe NAME` takes a file, or the bare name of one of these:

| recipe | |
|---|---|
| `tiny-cpu` | the embedded default: the whole method on a laptop's CPU |
| `qwen3-4b-lora-5k` | the public reproduction: LoRA r=32, 5k rows, CoTs cut at 8k tokens |
| `qwen3-4b-lora-5k-better` | what we would do with 5k rows and LoRA: whole CoTs, 3 epochs |
| `qwen3-4b-published-eval` | the reproduction's evaluation to the letter, of any checkpoint |
| `qwen3-4b-full-600k` | the paper's: all parameters, 600k rows, 3 epochs per phase |

Only what differs from the defaults stands in a file. `--set section.key=value` changes one key of a
command and may be repeated; unknown keys and values of another type are refused in one line. A run
keeps its resolved recipe in `config.yaml`; what shapes the model cannot be changed there later.

`train.deepspeed` names a file of `ds_configs/`: `zero3.json` (parameters, gradients and optimizer
sharded), `zero3_offload.json` (optimizer on the CPU), `zero2.json`, `zero1.json`, `cpu.json` (no
overlap, no prefetch: gloo on one machine). Gradients are reduced and accumulated in fp32, in
buckets of 50M elements (200 MB); parameters below 100k elements stay whole on every rank (norms; on
the CPU none); up to 1G elements are kept gathered, and where a file has no
`stage3_prefetch_bucket_size`, ZeRO-3 fetches two layers of the model at a time. Batch sizes,
clipping, accumulation, optimizer and schedule are the recipe's: a DeepSpeed file that sets one is
refused.

This page is made by `python -m abscot.recipe.keys` from `abscot/recipe/schema.py` and
`schema_train.py`; a test holds it to that.

## Schedules

`schedule` says where the traces of each phase come from, round by round, and how many times
`train.epochs` it has; a list's last entry holds for all rounds that follow:

| `schedule` | row of the ladder | traces of A | traces of B | epochs of A | epochs of B |
|---|---|---|---|---|---|
| `paper` | `Abstract-CoT (paper)` | `random`, `model` | `model` | 1 | 1 |
| `grounded` | `Abstract-CoT (grounded)` | `grounded` | `grounded` | 2, 0 | 2, 1 |

`random`: codebook tokens drawn by the seed. `grounded`: a code for each step of the CoT, from the
hidden states of the base that reads it where it would write it, in the thinking template. `model`:
sampled from the model of the training before, by A with the CoT in sight, by B from the prompt.
`model_with_cot`, for B: sampled with the CoT in sight.

`paper` is the method as published: the model's own traces from the second training on. `grounded`
opens the channel in one long phase A and then trains B alone, on traces that say something. In
three rounds both train on each answer as often. `launch/ladder.py` runs the schedule that the
recipe does not name as a run beside it, `NAME-paper` or `NAME-grounded`: the same recipe without
`traces.sources` and `train.phase_epochs` of A and B, and without `train.until_channel`.

`traces.sources` and `train.phase_epochs` (epochs, no factors; 0 leaves the phase out) make a
schedule of your own. With other sources it is `Abstract-CoT (custom)` in the ladder, which runs
both named ones beside it:

```yaml
schedule: grounded
rounds: 3
traces:
  sources:
    B: [grounded, model_with_cot]   # rounds 2 and 3: a teacher that sees the CoT
  best_of: 4                        # of what a model samples
train:
  phase_epochs:
    A: [4, 0]                       # round 1 alone
    B: [2, 1]
  channel_rows: 200
  until_channel: 0.95               # A ends when 95% of these rows are right
```

A baseline (`baselines`, or all in the ladder) trains on each answer as often as all rounds of its
run together: the epochs of A and B of all rounds, 6 in the tiny recipe, with `staging: partition`
their mean, rounded to whole ones; `train.phase_epochs` overrides that. Not equal are the supervised
tokens beside the answers (Z, or C of `sft_cot`), and the course of the learning rate: every phase
has its own. Where `until_channel` ends a phase early, the rounds train on fewer answers than the
baselines; the ladder shows how many.
"""


def page() -> str:
    comments = _comments()
    sections = [("", Recipe), *_sections()]
    return "\n".join([HEAD, *(_table(prefix, cls, comments) for prefix, cls in sections)])


def _sections() -> list[tuple[str, type]]:
    """(prefix, dataclass) of the sections, in the order of Recipe."""
    hints = typing.get_type_hints(Recipe)
    found = ((name, _section(hint)) for name, hint in hints.items())
    return [(f"{name}.", cls) for name, cls in found if cls]


def _section(hint) -> type | None:
    options = [option for option in (typing.get_args(hint) or (hint,)) if option is not NoneType]
    return options[0] if dataclasses.is_dataclass(options[0]) else None


def _table(prefix: str, cls: type, comments: dict[tuple[str, str], str]) -> str:
    """The keys of one section that are no sections themselves."""
    hints = typing.get_type_hints(cls)
    lines = [
        f"## {prefix.removesuffix('.') or 'the whole'}",
        "",
        "| key | default | |",
        "|---|---|---|",
    ]
    for field in dataclasses.fields(cls):
        if _section(hints[field.name]) is None:
            notes = _choices(hints[field.name]), comments.get((cls.__name__, field.name))
            note = "; ".join(filter(None, notes))
            cells = (f"`{prefix}{field.name}`", f"`{_default(field)}`", note.replace("|", "\\|"))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _choices(hint) -> str:
    """`one`, `other`: where only some values are allowed."""
    for inner in (hint, *typing.get_args(hint)):
        if typing.get_origin(inner) is typing.Literal:
            return ", ".join(f"`{value}`" for value in typing.get_args(inner))
    return ""


def _default(field: dataclasses.Field) -> str:
    made = field.default_factory is not dataclasses.MISSING
    value = field.default_factory() if made else field.default
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _comments() -> dict[tuple[str, str], str]:
    """(class, field) -> what its comment says: behind the field, or in the lines above it."""
    return _comments_of(schema) | _comments_of(schema_train)


def _comments_of(module) -> dict[tuple[str, str], str]:
    text = Path(module.__file__).read_text()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    of_line = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for cls in (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)):
        previous = cls.lineno
        for node in cls.body:
            if isinstance(node, ast.AnnAssign):
                lines = range(previous + 1, node.end_lineno + 1)
                notes = [of_line[line] for line in lines if line in of_line]
                found[cls.name, node.target.id] = " ".join(notes)
            previous = node.end_lineno
    return found


if __name__ == "__main__":
    write_text_atomic(PAGE, page())
    print(PAGE)
