"""A run's files -> its report: tables, plots, trace statistics, examples, recipe, environment."""

from pathlib import Path

from abscot.common import files
from abscot.method.lineage import round_model
from abscot.pipeline.lease import REPORT, exclusive
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe
from abscot.reporting import codes, explorer, meaning, model_card, used
from abscot.reporting.blocks import (
    Block,
    Code,
    Figure,
    Heading,
    Paragraph,
    Warnings,
    to_html,
    to_markdown,
)
from abscot.reporting.ladder import (
    channel_table,
    equalised,
    ladder_table,
    read_ladder,
    schedules_table,
)
from abscot.reporting.published import NOTE as PUBLISHED_NOTE
from abscot.reporting.published import any_beside
from abscot.reporting.run_data import RunData, read
from abscot.reporting.tables import (
    data_blocks,
    difference_blocks,
    environment_blocks,
    example_blocks,
    percent_interval,
    phase_table,
    results_table,
    trace_blocks,
)

RESULTS_NOTE = (
    "Accuracy with its 95% interval: bootstrap over problems; of mathematics and choices the last "
    "\\boxed{} alone counts. Any: accuracy with answers that stand in no closed box. Tokens are "
    "means, counted from ids: reasoning (a trace with its delimiters, or a thought), response (the "
    "rest; in mode verbal all of it), total; per correct: all generated tokens over right answers; "
    "cut: answers at their limit."
)

PHASES_NOTE = (
    "Losses are nats per supervised token. Entropy of codes, in nats: of those of the trace set "
    "and of codes that are all alike (ln M). A model that knows how often each code occurs and "
    "nothing more has about the first one as its loss z, which counts <endabstract> too."
)


def write(run: Run) -> Path:
    """Writes report/ of a run, and the card of final/ where there is one; returns the path of
    index.html.

    A half-done run is reported as far as it is. Raises UserError as `run_data.read` does, and where
    another process reports it.
    """
    from abscot.reporting import plots

    data = read(run)
    with exclusive(run.root, REPORT):
        with files.publish(run.report) as directory:
            page = blocks(data, plots.draw(data, directory))
            texts = {
                "report.md": to_markdown(page),
                "index.html": to_html(data.recipe.name, page, directory),
            }
            for name, text in texts.items():
                (directory / name).write_text(data.without_secrets(text), encoding="utf-8")
        model_card.write(data)
    return run.report / "index.html"


def table(run: Run) -> str:
    """The results table of a run, for a terminal."""
    return results_table(read(run)).text()


def blocks(data: RunData, figures: dict[str, str]) -> list[Block]:
    """The report in reading order. `figures`: file name -> caption, of those that could
    be drawn.
    """

    def figure(file: str) -> list[Block]:
        return [Figure(file, figures[file])] if file in figures else []

    recipe, uses = data.recipe, used.of_run(data)
    return [
        Heading(f"Abstract chain of thought: {recipe.name}", 1),
        Paragraph(_subtitle(recipe)),
        *[Paragraph(line) for line in (*_headline(data), *_whether_used(data, uses))],
        *_unfinished(data),
        Heading("Results"),
        results_table(data),
        Paragraph(RESULTS_NOTE, note=True),
        *[Paragraph(PUBLISHED_NOTE, note=True)] * any_beside(recipe.eval.benchmarks),
        *figure("accuracy_tokens.png"),
        *figure("rounds.png"),
        *_ladder(data),
        *difference_blocks(data),
        *_uses(uses),
        *_explorer(data),
        Heading("Training"),
        *figure("training.png"),
        *_closed_channels(data),
        phase_table(data),
        Paragraph(PHASES_NOTE, note=True),
        Heading("Traces"),
        *_collapse(data),
        *figure("trace_lengths.png"),
        *figure("token_frequency.png"),
        *trace_blocks(data),
        *_codes(data),
        *_meaning(data),
        Heading("Examples"),
        *example_blocks(data),
        Heading("Recipe and environment"),
        *data_blocks(data),
        *environment_blocks(data),
        Code("config.yaml", data.config_text.rstrip(), folded=True),
    ]


def _subtitle(recipe: Recipe) -> str:
    rounds = f"{recipe.rounds} round{'s' * (recipe.rounds > 1)} of warm-up"
    tuning = f"LoRA rank {recipe.lora.r}" if recipe.lora else "all parameters trained"
    return f"{rounds}; base model {recipe.model.base}; {tuning}; seed {recipe.seed}."


def _headline(data: RunData) -> list[str]:
    """The last model against the base that reasons in words, a sentence per benchmark."""
    final = round_model(data.recipe, data.run, data.recipe.rounds).name
    lines = []
    for benchmark in data.recipe.eval.benchmarks:
        abstract, words = data.of("abstract", final, benchmark), data.baseline(benchmark)
        if not (abstract and abstract.accuracy and words):
            continue
        ratio = words.total_tokens.value / max(abstract.total_tokens.value, 1)
        lines.append(
            f"{benchmark}: after round {data.recipe.rounds}, "
            f"{percent_interval(abstract.accuracy)}% right with {abstract.total_tokens.value:.1f} "
            f"tokens per answer; the base in mode {words.mode} {percent_interval(words.accuracy)}% "
            f"with {words.total_tokens.value:.1f} ({ratio:.1f}x as many)."
        )
    return lines


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


def _ladder(data: RunData) -> list[Block]:
    """All rows where baselines or other schedules were trained, and the channel where it was
    measured.
    """
    ladder, blocks = read_ladder(data), []
    if ladder.is_there:
        note = (
            f"{equalised(data.recipe, [d.recipe for d in ladder.beside])} Answers and supervised "
            "tokens: what the train logs count behind the base. Swapped: the answer behind the "
            "trace of another problem; shuffled: behind its own in another order. Differences are "
            "paired, in points."
        )
        blocks += [Heading("The ladder", 3), ladder_table(ladder), Paragraph(note, note=True)]
        blocks += [*filter(None, [schedules_table(ladder)])]
        blocks += [Warnings(ladder.left_out)] * bool(ladder.left_out)
    channel = channel_table(ladder)
    if channel:
        note = (
            "Channel: phase A's model is given the gold CoT, samples a trace in its sight and "
            "answers with the CoT hidden, so that what the answer knows of it came through the "
            "trace. Without CoT: the round's model. Gap: paired."
        )
        blocks += [Heading("The channel", 3), channel, Paragraph(note, note=True)]
    return blocks


def _closed_channels(data: RunData) -> list[Block]:
    """The phases that have trained all their epochs, and whose channel is still not open."""
    titles = {t.tag: t.title for t in data.trainings}
    found = [log.closed_channel(titles[tag]) for tag, log in data.logs.items() if tag in titles]
    lines = tuple(line for line in found if line)
    return [Warnings(lines)] if lines else []


def _whether_used(data: RunData, uses: list[used.Use]) -> list[str]:
    """Of the last model that was asked with other traces, a sentence or two per benchmark."""
    final = round_model(data.recipe, data.run, data.recipe.rounds).name
    return used.sentences(uses, final)


def _uses(uses: list[used.Use]) -> list[Block]:
    table = used.table(uses)
    if table is None:
        return []
    note = (
        "Another's: behind the trace that the same model makes for another problem of the "
        "benchmark. Shuffled: behind its own trace in a drawn order. Without: mode no_cot of the "
        "same model. Differences, own trace less the other, are paired, with 95% intervals: one "
        "that does not hold 0 is no accident."
    )
    return [Heading("Are the traces used?", 3), table, Paragraph(note, note=True)]


def _explorer(data: RunData) -> list[Block]:
    found = explorer.of_run(data)
    return [Heading("Trace explorer"), found] if found else []


def _codes(data: RunData) -> list[Block]:
    found = codes.tables(data)
    if not found:
        return []
    title = Heading("Codes of the CoTs' steps", 3)
    return [title, *found, Paragraph(codes.note(data), note=True)]


def _meaning(data: RunData) -> list[Block]:
    found = meaning.of_run(data)
    if not found:
        return []
    note = (
        "The code at each position beside the state after its step. Used: traces of so many codes "
        "a step; the others are not looked at. Purity: share of traces whose state is the most "
        "common one of their code; by chance: that of the same codes dealt out at random. NMI: "
        "mutual information, normalised; AMI: with what chance gives taken off, the one to go by "
        "where traces are few. Both are below 1 where several codes mean one state."
    )
    title = Heading("What the codes say of the state", 3)
    return [title, *meaning.tables(found), Paragraph(note, note=True)]


def _collapse(data: RunData) -> list[Block]:
    found = [f"{tag}: {w}" for tag, traces in data.traces.items() for w in traces["warnings"]]
    found += codes.warnings(data)
    if found:
        return [Warnings(tuple(found))]
    return [
        Paragraph(
            "No sign of collapse in any finished trace set."
            if data.traces
            else "No finished trace set yet."
        )
    ]
