"""How the report's pictures look: one colour means one thing throughout; ticks and names."""

import re

import matplotlib
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from abscot.method.lineage import Training
from abscot.method.phases import loop
from abscot.reporting.run_data import RunData

matplotlib.use("Agg")

INK, SOFT, GRID = "#1c2430", "#5b6675", "#e3e7ec"
LOSS = {
    "loss": ("total", INK),
    "loss_z": ("trace (z)", "#b8477f"),
    "loss_y": ("answer (y)", "#4f8a3c"),
}
PHASE = ("#1f8a84", "#d98e1f", "#8c6bb1", "#7fb069")  # of the loop, in order
MODE = {
    "verbal": "#5b6675",
    "thinking": "#c98b2b",
    "no_cot": "#9467a9",
    "pause": "#a07d3b",
    "abstract": "#2166ac",
    "abstract_swapped": "#d1662b",
    "abstract_permuted": "#c23b4b",
    "channel": "#1f8a84",
}
# Truncations, and what a recipe may add.
OTHER_MODES = ("#2a9d8f", "#7fb069", "#e0a030", "#8c6bb1")
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


def mode_colour(data: RunData, mode: str) -> str:
    others = sorted({s.mode for s in data.scored} - MODE.keys())
    return MODE[mode] if mode in MODE else OTHER_MODES[others.index(mode) % len(OTHER_MODES)]


def phase_colour(training: Training) -> str:
    return PHASE[loop().index(training.phase) % len(PHASE)]


def model_name(model: str) -> str:
    return re.sub(r"^round(\d+)$", r"round \1", model)


def log_ticks(axis, label: str) -> None:
    """1, 2, 5, 10, .. on a log axis: a span of less than a decade still shows its numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label.format(value)))
    axis.set_minor_formatter(NullFormatter())
