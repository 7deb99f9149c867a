"""The report's pictures: training curves, trace lengths, token frequencies, accuracy by tokens and
rounds.
"""

import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from abscot.evaluation.statistics import Summary
from abscot.method.lineage import Training
from abscot.method.phases import loop
from abscot.reporting.run_data import RunData

matplotlib.use("Agg")


INK, SOFT, GRID = "#1c2430", "#5b6675", "#e3e7ec"
# One colour means one thing throughout a report.
LOSS = {
    "loss": ("total", INK),
    "loss_z": ("trace (z)", "#b8477f"),
    "loss_y": ("answer (y)", "#4f8a3c"),
}
PHASE = ("#1f8a84", "#d98e1f", "#8c6bb1", "#7fb069")  # of the loop, in order
MODE = {
    "verbal": "#5b6675",
    "no_cot": "#9467a9",
    "pause": "#a07d3b",
    "abstract": "#2166ac",
    "abstract_permuted": "#c23b4b",
    "channel": "#1f8a84",
}
OTHER_MODES = (
    "#2a9d8f",
    "#7fb069",
    "#d1662b",
    "#e0a030",
    "#8c6bb1",
)  # truncations and what a recipe may add
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#b8c0ca",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.dpi": 130,
    "savefig.bbox": "tight",
}


def draw(data: RunData, directory: Path) -> dict[str, str]:
    """Draws every picture whose data exist; returns {file name: caption}. Same data, same bytes."""
    drawn = {}
    with plt.rc_context(STYLE):
        for file, picture in PICTURES.items():
            made = picture(data)
            if made is not None:
                figure, drawn[file] = made
                figure.savefig(directory / file, metadata={"Software": None})
                plt.close(figure)
    return drawn


def training(data: RunData):
    """Loss and learning rate of all phases, end to end."""
    logs = {tag: log.steps for tag, log in data.logs.items() if log.steps}
    if not logs:
        return None
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 5.2), sharex=True, gridspec_kw={"height_ratios": [3, 1], "hspace": 0.12}
    )
    start, labelled = 0, set()
    for number, (tag, steps) in enumerate(logs.items()):
        x = start + np.arange(1, len(steps) + 1)
        for key, (label, colour) in LOSS.items():
            y = np.array([getattr(s, key) for s in steps], dtype=float)
            if not y.any():  # a phase without that segment
                continue
            above.plot(x, y, color=colour, linewidth=0.8, alpha=0.3 if len(y) >= 50 else 0.9)
            if len(y) >= 50:
                above.plot(x, _smooth(y), color=colour, linewidth=1.7)
            if label not in labelled:
                above.plot([], [], color=colour, linewidth=2, label=label)
                labelled.add(label)
        below.plot(x, [s.lr for s in steps], color=SOFT, linewidth=1.5)
        for axes in (above, below):
            axes.axvspan(
                start + 0.5,
                start + len(steps) + 0.5,
                color=GRID,
                alpha=0.55 * (number % 2),
                linewidth=0,
            )
        name = _phase_name(tag).removeprefix("round ") if len(logs) > 8 else _phase_name(tag)
        above.text(
            start + 0.5 + len(steps) / 2,
            1.02,
            name,
            transform=above.get_xaxis_transform(),
            ha="center",
            va="bottom",
            color=SOFT,
            fontsize=9,
        )
        start += len(steps)
    above.set_ylabel("loss, nats per supervised token")
    above.set_ylim(bottom=0)
    above.legend(ncols=3, loc="upper right")
    below.set_ylabel("learning rate")
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    below.set_xlabel("optimizer steps, all phases end to end")
    below.set_xlim(0.5, start + 0.5)
    below.set_ylim(bottom=0)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    return (
        figure,
        "Loss (thin: each step, thick: running mean) and learning rate of every phase, on one "
        "axis of steps.",
    )


def trace_lengths(data: RunData):
    """One histogram a trace set: rounds down, phases across."""
    if not data.traces:
        return None
    m_min, m_max = data.recipe.traces.m_min, data.recipe.traces.m_max
    rounds, readers = data.recipe.rounds, [t for t in data.trainings if t.reads_traces]
    size = (9, 0.6 + 1.75 * rounds)
    across = len(readers) // rounds
    figure, grid = plt.subplots(rounds, across, figsize=size, sharex=True, squeeze=False)
    width = max(1, (m_max + 1) // 64)
    for axes, training in zip(grid.flat, readers, strict=True):
        tag = training.tag
        axes.set_title(_phase_name(tag))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        for bound in (m_min, m_max):
            axes.axvline(bound, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
        if tag not in data.traces:
            _nothing(axes)
            continue
        stats = data.traces[tag]
        histogram = np.array(stats.get("length_histogram", [0]))
        edges = np.arange(0, m_max + width + 1, width)
        heights = np.add.reduceat(
            np.pad(histogram, (0, edges[-1] - histogram.size)), edges[:-1]
        ) / max(histogram.sum(), 1)
        axes.bar(
            edges[:-1] - 0.5,
            heights,
            width,
            align="edge",
            color=_phase_colour(training),
            edgecolor="white",
            linewidth=0.4,
        )
        mean, spread = stats.get("length_mean", 0), stats.get("length_std", 0)
        note = f"mean {mean:.1f}, sd {spread:.1f}, n {histogram.sum():,}"
        axes.set_title(note, loc="right", fontsize=8.5, fontweight="normal", color=SOFT)
    for axes in grid[-1]:
        axes.set_xlabel("trace length, abstract tokens")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(-0.5 - 0.01 * m_max, m_max + 0.5 + 0.02 * m_max)
    figure.supylabel("share of traces", fontsize=10, color=SOFT)
    figure.tight_layout()
    return (
        figure,
        f"Length of the traces each phase trains on; dashed: m_min = {m_min} and m_max = {m_max}.",
    )


def token_frequency(data: RunData):
    """Rank against frequency, log-log: a panel a round, a curve a phase."""
    if not data.traces:
        return None
    size, rounds = data.recipe.codebook_size, data.recipe.rounds
    across = min(rounds, 3)
    down = -(-rounds // across)
    figure, grid = plt.subplots(
        down,
        across,
        figsize=(3.1 * across, 0.5 + 2.7 * down),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes in grid.flat[rounds:]:
        axes.remove()
    for round_, axes in enumerate(grid.flat[:rounds], 1):
        axes.set_title(f"Round {round_}")
        axes.loglog(
            [1, size],
            [100 / size] * 2,
            color=SOFT,
            linewidth=1,
            linestyle=(0, (3, 3)),
            label="uniform",
        )
        for training in (t for t in data.trainings if t.round == round_):
            counts = np.sort(data.traces.get(training.tag, {}).get("token_counts", []))[::-1]
            counts = counts[counts > 0]
            if counts.size:
                label = f"{training.phase.name}: {counts.size} of {size} used"
                axes.plot(
                    np.arange(1, counts.size + 1),
                    100 * counts / counts.sum(),
                    color=_phase_colour(training),
                    marker="o",
                    markersize=2.5,
                    linewidth=1.3,
                    label=label,
                )
        axes.legend(loc="lower left", fontsize=8, handlelength=1.4)
        _log_ticks(axes.xaxis, "{:g}")
        _log_ticks(axes.yaxis, "{:g}%")
    for axes in grid[-1][: rounds - (down - 1) * across]:
        axes.set_xlabel("rank of the token")
    for axes in grid[:, 0]:
        axes.set_ylabel("share of trace tokens")
    figure.tight_layout()
    return figure, "How often each abstract token is used, by rank; dashed: all tokens alike."


def accuracy_tokens(data: RunData):
    """What an answer costs and how often it is right: a panel a benchmark."""
    scored = [
        s for s in data.scored if s.mode != "channel"
    ]  # it is given a CoT, which costs nothing there
    if not scored:
        return None
    figure, panels = _panels(data)
    for benchmark, axes in panels.items():
        cells = [s for s in scored if s.benchmark == benchmark]
        for s in cells:
            x, y = s.total_tokens, s.accuracy
            axes.errorbar(
                x.value,
                100 * y.value,
                color=_colour(data, s.mode),
                marker="o",
                markersize=3.5 if s.mode.startswith("abstract_") else 5.5,
                capsize=0,
                elinewidth=1.2,
                xerr=[[x.value - x.low], [x.high - x.value]],
                yerr=[[100 * (y.value - y.low)], [100 * (y.high - y.value)]],
            )
        low, high = _percent_limits(cells)
        _label_points(axes, cells, gap=0.06 * (high - low))
        chain = sorted((s for s in cells if s.mode == "abstract"), key=lambda s: s.round)
        at, right = [s.total_tokens.value for s in chain], [100 * s.accuracy.value for s in chain]
        axes.plot(at, right, color=MODE["abstract"], linewidth=1, alpha=0.5, zorder=1)
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, "{:,g}")
        axes.margins(x=0.12)
        axes.set_xlabel("mean generated tokens an answer (log)")
        axes.set_ylim(low, high)
        axes.set_ylabel("accuracy, %")
    _mode_legend(data, figure, [s.mode for s in scored])
    return (
        figure,
        "Accuracy against mean generated tokens, with 95% intervals. Up and left is better.",
    )


def rounds(data: RunData):
    """Accuracy and mean tokens after each round, a curve a mode; the base and the SFT baselines as
    level lines.
    """
    names = list(dict.fromkeys(s.benchmark for s in data.scored if s.round))
    if not names:
        return None
    size = (max(5.6, 3.5 * len(names)), 5.2)
    figure, grid = plt.subplots(
        2,
        len(names),
        figsize=size,
        sharex=True,
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": [3, 2]},
    )
    for (above, below), benchmark in zip(grid.T, names, strict=True):
        cells = [s for s in data.scored if s.benchmark == benchmark]
        above.set_title(benchmark)
        _curves(data, above, cells, lambda s: s.accuracy, 100)
        _curves(data, below, [s for s in cells if s.mode != "channel"], lambda s: s.total_tokens, 1)
        above.set_ylim(*_percent_limits(cells))
        above.set_ylabel("accuracy, %")
        below.set_yscale("log")
        _log_ticks(below.yaxis, "{:,g}")
        below.set_ylabel("tokens an answer (log)")
        below.set_xlim(0.8, data.recipe.rounds + 0.2)
        below.set_xticks(range(1, data.recipe.rounds + 1))
        below.set_xlabel("round")
    _mode_legend(data, figure, [s.mode for s in data.scored])
    caption = (
        "Accuracy and mean generated tokens after each round, with 95% intervals; dashed: the base"
    )
    return figure, f"{caption}, dotted: SFT baselines."


def _curves(data: RunData, axes, cells: list[Summary], of, scale: float) -> None:
    """of: Summary -> Interval. Rounds as a curve with its band, what has no round as a level line
    with its band.
    """
    for mode in dict.fromkeys(s.mode for s in cells):
        colour = _colour(data, mode)
        curve = sorted((s for s in cells if s.mode == mode and s.round), key=lambda s: s.round)
        at, bands = [s.round for s in curve], [of(s) for s in curve]
        axes.plot(at, [scale * b.value for b in bands], color=colour, marker="o", markersize=5)
        low, high = [scale * b.low for b in bands], [scale * b.high for b in bands]
        axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
        for s in (s for s in cells if s.mode == mode and not s.round):
            level, dashes = of(s), (4, 3) if s.model == "base" else (1, 2)
            axes.axhline(scale * level.value, color=colour, linewidth=1.3, linestyle=(0, dashes))
            axes.axhspan(
                scale * level.low, scale * level.high, color=colour, alpha=0.1, linewidth=0
            )


PICTURES = {
    "accuracy_tokens.png": accuracy_tokens,
    "rounds.png": rounds,
    "training.png": training,
    "trace_lengths.png": trace_lengths,
    "token_frequency.png": token_frequency,
}


def _panels(data: RunData):
    """A panel a benchmark that has results, three a row."""
    names = list(dict.fromkeys(s.benchmark for s in data.scored))
    across = min(len(names), 3)
    down = -(-len(names) // across)
    size = (5.6, 3.9) if across == 1 else (3.5 * across, 3.2 * down)
    figure, grid = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(names) :]:
        axes.remove()
    for name, axes in zip(names, grid.flat, strict=False):
        axes.set_title(name)
    return figure, dict(zip(names, grid.flat, strict=False))


def _mode_legend(data: RunData, figure, modes: list[str]) -> None:
    handles = [
        plt.Line2D([], [], color=_colour(data, m), marker="o", linewidth=1.5, label=m)
        for m in dict.fromkeys(modes)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))


def _label_points(axes, cells: list[Summary], gap: float) -> None:
    """The model's name beside its point, at least `gap` percent above its neighbour's name.

    Variants of the abstract mode go without: they sit beside the abstract point of their model.
    """
    named = [s for s in cells if not s.mode.startswith("abstract_")]
    placed: list[tuple[float, float]] = []  # tokens, height
    for s in sorted(named, key=lambda s: s.accuracy.value):
        tokens, height = s.total_tokens.value, 100 * s.accuracy.value
        beside = [h for t, h in placed if 0.5 < (tokens + 1) / (t + 1) < 2]
        height = max([height, *(h + gap for h in beside)])
        placed.append((tokens, height))
        axes.annotate(
            _model_name(s.model),
            (tokens, height),
            fontsize=8,
            color=SOFT,
            textcoords="offset points",
            xytext=(7, 0),
            va="center",
            zorder=5,
            annotation_clip=False,
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
        )


def _percent_limits(cells: list[Summary]) -> tuple[float, float]:
    """From 0 for small accuracies, else close around the intervals: a difference of two points must
    show.
    """
    low, high = min(s.accuracy.low for s in cells), max(s.accuracy.high for s in cells)
    room = max(0.08 * (high - low), 0.01)
    return 100 * (0 if low < 0.4 else low - room) - (1 if low < 0.4 else 0), 100 * min(
        high + room, 1.02
    )


def _colour(data: RunData, mode: str) -> str:
    others = sorted({s.mode for s in data.scored} - MODE.keys())
    return MODE[mode] if mode in MODE else OTHER_MODES[others.index(mode) % len(OTHER_MODES)]


def _log_ticks(axis, label: str) -> None:
    """1, 2, 5, 10, .. on a log axis: a span of less than a decade still shows its numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label.format(value)))
    axis.set_minor_formatter(NullFormatter())


def _smooth(y: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the phase, narrower at its ends."""
    half = max(1, len(y) // 40)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    low, high = (
        np.clip(np.arange(len(y)) - half, 0, None),
        np.clip(np.arange(len(y)) + half + 1, None, len(y)),
    )
    return (sums[high] - sums[low]) / (high - low)


def _phase_name(tag: str) -> str:
    """`pi2_phaseA` -> `round 2 A`; a baseline keeps its name."""
    found = re.fullmatch(r"pi(\d+)_phase(\w+)", tag)
    return f"round {found[1]} {found[2]}" if found else tag


def _phase_colour(training: Training) -> str:
    return PHASE[loop().index(training.phase) % len(PHASE)]


def _model_name(model: str) -> str:
    return re.sub(r"^round(\d+)$", r"round \1", model)


def _nothing(axes) -> None:
    axes.set_yticks([])
    axes.text(
        0.5,
        0.5,
        "not there yet",
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=SOFT,
        style="italic",
    )
