"""What all figures share: colours, the canvas, axes, captions and the file.

matplotlib is imported when a figure is drawn, and only its object interface: no pyplot state, no window, nothing to
close. Colours are Okabe and Ito's, which colour-blind readers tell apart; lines and marks differ in shape too.
"""

import io
import textwrap
from pathlib import Path

import numpy as np

from utils.io.files import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73")
FLOOR_LABEL = "random weights (floor)"
SLANTED = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}  # tick labels


def make_figure(width: float, height: float):
    """Make an empty matplotlib Figure of that many inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    return figure


def tidy(axes, grid: str = "both"):
    """Remove the frame's upper and right line, and draw a pale grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)


def separate_cells(axes, n_rows: int, n_columns: int):
    """Draw white lines between the cells of a heat map, in place of frame and ticks."""
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(n_columns - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(n_rows - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)


def add_colour_bar(figure, image, axes, label: str):
    """Add a colour bar from 0 to 100 %."""
    bar = figure.colorbar(image, ax=axes, label=label, pad=0.02, shrink=0.9, ticks=[0, 20, 40, 60, 80, 100])
    bar.outline.set_visible(False)


def add_title(figure, axes, text: str):
    """Write the title above the axes, wrapped to the figure's width."""
    axes.set_title(textwrap.fill(text, int(figure.get_figwidth() * 10)), fontsize=12)


def add_caption(figure, text: str):
    """Write a caption below the figure, wrapped to its width; an empty text leaves no room."""
    if text:
        width = int(figure.get_figwidth() * 15.5)  # characters of this size per inch
        figure.supxlabel(textwrap.fill(text, width), fontsize=8, color="#555555", ha="left", x=0.02)


def save(figure, path: str | Path) -> Path:
    """Write the figure as a PNG file."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_atomically(path, png.getvalue())
    return Path(path)
