"""The figure of what encoders remember of each task beyond accuracy. Legend: N encoders, T test tasks."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.results.figures.canvas import make_figure, save, tidy

PANELS = {  # measure: (label, values per unit)
    "knn": ("kNN among the task's own classes, accuracy (%)", 0.01),
    "cka": ("linear CKA with the encoder saved after the task", 1.0),
    "shift": ("mean shift from that encoder (1 - cosine)", 1.0),
    "rank": ("effective rank of the task's embeddings", 1.0),
}
MARKERS = "osD^vP*Xph"
MOST_NAMED = 12  # tasks in the legend


def plot_remembered(
    measures: dict, task_names: Sequence[str], path: str | Path, title: str = "What is remembered"
) -> Path:
    """Draw each measure over the encoders, a line per test task; kNN also for random weights.

    Parameters
    ----------
    measures : dict of str to list
        ``knn``, ``cka``, ``shift`` and ``rank``: [N, T], None where not measured; ``knn_floor``: [T].
    task_names : sequence of str [T]
    path : str or Path
        The PNG file.
    title : str
    """
    from matplotlib import colormaps

    figure = make_figure(9.6, 6.4)
    grid, shades = figure.subplots(2, 2), colormaps["viridis"]
    for axes, (name, (label, unit)) in zip(grid.flat, PANELS.items(), strict=True):
        table = np.array(measures[name], dtype=float) / unit  # [N, T]
        for task in range(table.shape[1]):
            text = f"task {task}: {textwrap.shorten(task_names[task], 34, placeholder=' ...')}"
            style = {"color": shades(0.9 * task / max(1, table.shape[1] - 1)), "marker": MARKERS[task % len(MARKERS)]}
            axes.plot(range(len(table)), table[:, task], markersize=5, linewidth=1.5, label=text, **style)
        axes.set_title(label, fontsize=10, loc="left")
        axes.set_xticks(range(len(table)))
        tidy(axes)
    for task, floor in enumerate(np.array(measures["knn_floor"], dtype=float)):  # left of the first encoder
        line = grid[0, 0].lines[task]
        grid[0, 0].plot(-1, 100 * floor, color=line.get_color(), marker=line.get_marker(), markerfacecolor="white")
    grid[0, 0].set_xticks(range(-1, len(table)), ["random", *range(len(table))])
    for axes in grid[1]:
        axes.set_xlabel("encoder saved after task")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    where = {"loc": "outside lower center", "ncols": 2, "frameon": False, "fontsize": 9}
    figure.legend(handles[:MOST_NAMED], labels[:MOST_NAMED], **where)
    figure.suptitle(title, fontsize=12)
    return save(figure, path)
