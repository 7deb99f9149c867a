"""Pictures of the results: accuracy against tokens, and over the rounds."""

import matplotlib.pyplot as plt
from matplotlib import patheffects

from abscot.evaluation.statistics import Summary
from abscot.reporting.plot_style import MODE, SOFT, log_ticks, mode_colour, model_name
from abscot.reporting.run_data import RunData


def accuracy_tokens(data: RunData):
    """What an answer costs and how often it is right: a panel per benchmark."""
    # The channel is given a CoT, which costs nothing there.
    scored = [s for s in data.scored if s.mode != "channel"]
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
                color=mode_colour(data, s.mode),
                marker="o",
                markersize=3.5 if s.mode.startswith("abstract_") else 5.5,
                capsize=0,
                elinewidth=1.2,
                xerr=[[x.value - x.low], [x.high - x.value]],
                yerr=[[100 * (y.value - y.low)], [100 * (y.high - y.value)]],
            )
        low, high = _percent_limits(cells)
        axes.set_ylim(low, high)
        _label_points(axes, cells, gap=0.06 * (high - low))
        chain = [s for s in cells if s.mode == "abstract" and s.round]
        chain.sort(key=lambda s: s.round)
        at, right = [s.total_tokens.value for s in chain], [100 * s.accuracy.value for s in chain]
        axes.plot(at, right, color=MODE["abstract"], linewidth=1, alpha=0.5, zorder=1)
        axes.set_xscale("log")
        log_ticks(axes.xaxis, "{:,g}")
        axes.margins(x=0.12)
        axes.set_xlabel("mean generated tokens per answer (log)")
        axes.set_ylabel("accuracy, %")
    _mode_legend(data, figure, [s.mode for s in scored])
    return (
        figure,
        "Accuracy against mean generated tokens, with 95% intervals. Up and left is better.",
    )


def rounds(data: RunData):
    """Accuracy and mean tokens after each round, a curve per mode; the base and the SFT baselines
    as level lines.
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
        log_ticks(below.yaxis, "{:,g}")
        below.set_ylabel("tokens per answer (log)")
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
        colour = mode_colour(data, mode)
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


def _panels(data: RunData):
    """A panel per benchmark that has results, three in a row."""
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
        plt.Line2D([], [], color=mode_colour(data, m), marker="o", linewidth=1.5, label=m)
        for m in dict.fromkeys(modes)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))


def _label_points(axes, cells: list[Summary], gap: float) -> None:
    """The model's name beside its point, at least `gap` percent from its neighbour's name: towards
    the middle of the axis, so that names stay on it.

    Variants of the abstract mode go without: they sit beside the abstract point of their model.
    """
    named = [s for s in cells if not s.mode.startswith("abstract_")]
    placed: list[tuple[float, float]] = []  # tokens, height
    middle, heights = sum(axes.get_ylim()) / 2, [100 * s.accuracy.value for s in named]
    up = -1 if sum(heights) > len(heights) * middle else 1
    for s in sorted(named, key=lambda s: up * s.accuracy.value):
        tokens, height = s.total_tokens.value, 100 * s.accuracy.value
        beside = [h for t, h in placed if 0.5 < (tokens + 1) / (t + 1) < 2]
        height = up * max([up * height, *(up * h + gap for h in beside)])
        placed.append((tokens, height))
        axes.annotate(
            model_name(s.model),
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
    bottom = -1 if low < 0.4 else 100 * (low - room)
    return bottom, 100 * min(high + room, 1.02)
