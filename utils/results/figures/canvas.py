"""What all figures share: colours, the canvas, axes, captions and the file.

matplotlib is imported when a figure is drawn, and only its object interface: no pyplot state, no window, nothing to
close. Colours are Okabe and Ito's, which colour-blind readers tell apart; lines and marks differ in shape too.
"""

import contextlib
import io
import logging
import re
import textwrap
import warnings
from pathlib import Path

import numpy as np

from utils.io.files import write_atomically

logger = logging.getLogger(__name__)

COLOURS = ("#0072B2", "#D55E00", "#009E73")
FLOOR_LABEL = "random weights (floor)"
_boxes = set()  # characters that figures of this process lack: they are warned of once
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
    """Write the figure as a PNG file, in fonts that have its characters if there are such, names with $ as they are."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    png, missing = _draw(figure)
    fonts = _fonts_with(missing)
    if fonts:
        for text in figure.findobj(Text):
            text.set_fontfamily([*text.get_fontfamily(), *fonts])
        png, missing = _draw(figure)
    if missing and not _boxes:
        some = textwrap.shorten(" ".join(sorted(missing)), 60, placeholder=" ...")
        logger.warning("No font here has the characters %s: figures show boxes. Install one, such as Noto CJK.", some)
    _boxes.update(missing)
    write_atomically(path, png)
    return Path(path)


def _draw(figure):
    """Draw the figure: its PNG, and the characters that its fonts lack. Matplotlib warns of each of these by itself."""
    png, missing = io.BytesIO(), set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(png, format="png")
    for warning in caught:
        glyph = re.match(r"Glyph (\d+) \(", str(warning.message))
        if glyph:
            missing.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return png.getvalue(), missing


def _fonts_with(characters):
    """The fewest families of this machine's fonts that have these characters, or as many of them as any have."""
    if not characters:
        return []
    from matplotlib.font_manager import fontManager, get_font

    have, families = {}, []
    for font in fontManager.ttflist:
        with contextlib.suppress(RuntimeError, OSError):  # fonts of other kinds
            if not re.search("last ?resort|blank", font.name, re.IGNORECASE):  # they draw boxes, or nothing
                found = {character for character in characters if ord(character) in get_font(font.fname).get_charmap()}
                have[font.name] = have.get(font.name, found) & found  # in each of the family's styles
    while have:
        best = max(sorted(have), key=lambda name: len(have[name] & characters))
        if not have[best] & characters:
            break
        families.append(best)
        characters = characters - have.pop(best)
    return families
