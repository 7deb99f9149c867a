"""Pictures of the training: losses, and the traces that each phase read."""

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from abscot.reporting.plot_style import GRID, LOSS, MODE, SOFT, log_ticks, phase_colour
from abscot.reporting.run_data import RunData
from abscot.training.record import StepEntry


def training(data: RunData):
    """Loss and learning rate of all phases, end to end."""
    logs = {tag: log.steps for tag, log in data.logs.items() if log.steps}
    if not logs:
        return None
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 5.2), sharex=True, gridspec_kw={"height_ratios": [3, 1], "hspace": 0.12}
    )
    titles = {training.tag: training.title for training in data.trainings_and_baselines}
    start, labelled, channel = 0, set(), []
    top = max(_settled(steps) for steps in logs.values())
    for number, (tag, steps) in enumerate(logs.items()):
        x = start + np.arange(1, len(steps) + 1)
        _losses(above, x, steps, labelled)
        channel += [(start + entry.step + 1, entry.channel) for entry in data.logs[tag].channel]
        channel += [(np.nan, np.nan)]  # a phase's curve ends with it
        if any(step.loss_z for step in steps):
            _entropies(data, above, tag, (start + 0.5, start + len(steps) + 0.5), labelled)
            top = max(top, data.uniform_entropy)
        below.plot(x, [s.lr for s in steps], color=SOFT, linewidth=1.5)
        stripe = {"color": GRID, "alpha": 0.55 * (number % 2), "linewidth": 0}
        for axes in (above, below):
            axes.axvspan(start + 0.5, start + len(steps) + 0.5, **stripe)
        name = titles[tag].removeprefix("round ") if len(logs) > 8 else titles[tag]
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
    measured = not np.isnan(channel).all()
    if measured:
        _channel(above, channel)
    above.set_ylabel("loss, nats per supervised token")
    above.set_ylim(0, 1.25 * top)
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="upper center", bbox_to_anchor=(0.5, 0))
    below.set_ylabel("learning rate")
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    below.set_xlabel("optimizer steps, all phases end to end")
    below.set_xlim(0.5, start + 0.5)
    below.set_ylim(bottom=0)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    return (
        figure,
        "Loss (thin: each step, thick: running mean) and learning rate of every phase, on one "
        "axis of steps; the first tenth of a phase may lie above the picture. Dotted: the entropy "
        "of codes that are all alike; dashed: of the codes of the traces that a phase reads."
        + (" Dots: the channel, on rows kept out." if measured else ""),
    )


def _settled(steps: list[StepEntry]) -> float:
    """The highest of the losses behind the first tenth of a phase."""
    late = steps[len(steps) // 10 :]
    return max(getattr(step, key) for step in late for key in LOSS)


def _channel(axes, points: list[tuple[float, float]]) -> None:
    """The channel over the steps, on an axis of its own at the right."""
    right = axes.twinx()
    x, share = np.array(points).T
    colour = MODE["channel"]
    right.plot(x, 100 * share, color=colour, marker="o", markersize=3, linewidth=1.2)
    axes.plot([], [], color=colour, marker="o", markersize=3, linewidth=1.2, label="channel")
    right.set_ylabel("channel, % of answers", color=colour)
    right.set_ylim(0, 105)
    right.grid(False)


def _losses(axes, x: np.ndarray, steps: list[StepEntry], labelled: set[str]) -> None:
    """The losses of one phase; each kind gets its label once."""
    for key, (label, colour) in LOSS.items():
        y = np.array([getattr(s, key) for s in steps], dtype=float)
        if not y.any():  # a phase without that segment
            continue
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3 if len(y) >= 50 else 0.9)
        if len(y) >= 50:
            axes.plot(x, _smooth(y), color=colour, linewidth=1.7)
        if label not in labelled:
            axes.plot([], [], color=colour, linewidth=2, label=label)
            labelled.add(label)


def _entropies(data: RunData, axes, tag: str, span: tuple[float, float], labelled: set) -> None:
    """What a loss z is to be compared with, as level lines over the steps of one phase."""
    lines = {
        "codes all alike": (data.uniform_entropy, "dotted"),
        "codes of the traces": (data.codes_entropy(tag), "dashed"),
    }
    for label, (entropy, style) in lines.items():
        if entropy is not None:
            named = {} if label in labelled else {"label": label}
            colour = LOSS["loss_z"][1]
            axes.plot(span, [entropy] * 2, color=colour, linewidth=1.1, linestyle=style, **named)
            labelled.add(label)


def _smooth(y: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the phase, narrower at its ends."""
    half = max(1, len(y) // 40)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    low, high = np.clip(at - half, 0, None), np.clip(at + half + 1, None, len(y))
    return (sums[high] - sums[low]) / (high - low)


def trace_lengths(data: RunData):
    """One histogram per trace set, in the order of training: as many across as the fullest round
    has.
    """
    if not data.traces:
        return None
    m_min, m_max = data.recipe.traces.m_min, data.recipe.traces.m_max
    readers = [t for t in data.trainings if t.reads_traces]
    across = max(Counter(t.round for t in readers).values())
    down = -(-len(readers) // across)
    size = (9, 0.6 + 1.75 * down)
    figure, grid = plt.subplots(down, across, figsize=size, sharex=True, squeeze=False)
    for axes in grid.flat[len(readers) :]:
        axes.remove()
    panels = grid.flat[: len(readers)]
    width = max(1, (m_max + 1) // 64)
    for axes, training in zip(panels, readers, strict=True):
        tag = training.tag
        axes.set_title(training.title)
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
            color=phase_colour(training),
            edgecolor="white",
            linewidth=0.4,
        )
        mean, spread = stats.get("length_mean", 0), stats.get("length_std", 0)
        note = f"mean {mean:.1f}, sd {spread:.1f}, n {histogram.sum():,}"
        axes.set_title(note, loc="right", fontsize=8.5, fontweight="normal", color=SOFT)
    for axes in panels[-across:]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("trace length, abstract tokens")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(-0.5 - 0.01 * m_max, m_max + 0.5 + 0.02 * m_max)
    figure.supylabel("share of traces", fontsize=10, color=SOFT)
    figure.tight_layout()
    return (
        figure,
        f"Length of the traces each phase trains on; dashed: m_min = {m_min} and m_max = {m_max}.",
    )


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


def token_frequency(data: RunData):
    """Rank against frequency, log-log: a panel per round, a curve per phase."""
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
                    color=phase_colour(training),
                    marker="o",
                    markersize=2.5,
                    linewidth=1.3,
                    label=label,
                )
        axes.legend(loc="lower left", fontsize=8, handlelength=1.4)
        log_ticks(axes.xaxis, "{:g}")
        log_ticks(axes.yaxis, "{:g}%")
    for axes in grid[-1][: rounds - (down - 1) * across]:
        axes.set_xlabel("rank of the token")
    for axes in grid[:, 0]:
        axes.set_ylabel("share of trace tokens")
    figure.tight_layout()
    return figure, "How often each abstract token is used, by rank; dashed: all tokens alike."
