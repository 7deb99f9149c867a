"""The report's pictures, a table: file -> what draws it, from (RunData) to (figure, caption)."""

from pathlib import Path

import matplotlib.pyplot as plt

from abscot.reporting.plot_results import accuracy_tokens, rounds
from abscot.reporting.plot_style import STYLE
from abscot.reporting.plot_training import token_frequency, trace_lengths, training
from abscot.reporting.run_data import RunData

PICTURES = {
    "accuracy_tokens.png": accuracy_tokens,
    "rounds.png": rounds,
    "training.png": training,
    "trace_lengths.png": trace_lengths,
    "token_frequency.png": token_frequency,
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
