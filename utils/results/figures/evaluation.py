"""Figures of one evaluation: accuracy table, accuracy over tasks, confusion matrix.

Shapes: N encoders, T test tasks, C classes. Accuracies come as fractions and are drawn in percent.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.results.figures.canvas import (
    COLOURS,
    FLOOR_LABEL,
    SLANTED,
    add_caption,
    add_colour_bar,
    add_title,
    make_figure,
    save,
    separate_cells,
    tidy,
)
from utils.results.protocols import fixed, in_words

MAX_CELL_NUMBERS = 20  # classes; beyond it a confusion matrix has no room for numbers
MAX_TICK_LABELS = 60  # labels per axis; beyond it they are thinned


def plot_accuracy_table(
    table: np.ndarray,
    path: str | Path,
    task_names: Sequence[str] | None = None,
    title: str = "Accuracy on each test task",
    classes_grow: bool = False,
) -> Path:
    """Draw the accuracy table as a heat map, percent in the cells, blank where not evaluated.

    Parameters
    ----------
    table : array of float [N, T]
        Accuracies, fractions; NaN where not evaluated.
    path : str or Path
        The PNG file.
    task_names : sequence of str [T], optional
        Labels of the columns; ``task0``, ``task1``, ... by default.
    title : str
    classes_grow : bool
        Whether the protocol's classes grow; the caption then says why accuracies fall without forgetting.
    """
    percent = 100 * np.asarray(table, dtype=float)  # [N, T]
    n_rows, n_columns = percent.shape
    task_names = [f"task{j}" for j in range(n_columns)] if task_names is None else list(task_names)
    task_names = [textwrap.shorten(name, 28, placeholder="…") for name in task_names]
    slanted = max(map(len, task_names)) > 8
    figure = make_figure(max(4.6, 2.2 + 0.72 * n_columns), max(2.8, 1.9 + 0.5 * n_rows + 0.4 * slanted))
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for i, j in np.argwhere(np.isfinite(percent)):
        colour = "black" if percent[i, j] > 47 else "white"  # the better contrast on cividis
        axes.text(j, i, f"{percent[i, j]:.1f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(n_columns), task_names, **(SLANTED if slanted else {}))
    axes.set_yticks(range(n_rows), range(n_rows))
    separate_cells(axes, n_rows, n_columns)
    axes.set_xlabel("test task")
    axes.set_ylabel("encoder saved after task")
    add_colour_bar(figure, image, axes, "accuracy (%)")
    add_title(figure, axes, title)
    add_caption(figure, _growing_caption() if classes_grow else "")
    return save(figure, path)


def plot_accuracy_over_tasks(
    curve: np.ndarray,
    floor_curve: np.ndarray | float | None,
    path: str | Path,
    chance: np.ndarray | float | None = None,
    title: str = "Accuracy on the tasks seen so far",
    classes_grow: bool = False,
) -> Path:
    """Draw the mean accuracy over the seen tasks after each task, beside a random encoder's and chance.

    Parameters
    ----------
    curve : array of float [N]
        Mean accuracy after each task, fractions (see `utils.results.metrics.mean_over_seen`).
    floor_curve : array of float [N], float or None
        The same of an encoder with random weights.
    path : str or Path
        The PNG file.
    chance : array of float [N] or float, optional
        Accuracy of a guess, a fraction: 1 / the classes that the classifier chooses among.
    title : str
    classes_grow : bool
        See `plot_accuracy_table`.
    """
    curve = 100 * np.asarray(curve, dtype=float)
    tasks = np.arange(len(curve))
    figure = make_figure(5.6, 3.8)
    axes = figure.add_subplot()
    axes.plot(tasks, curve, "o-", color=COLOURS[0], linewidth=2, markersize=6, label="trained")
    if floor_curve is not None:
        floor_curve = np.broadcast_to(100 * np.asarray(floor_curve, dtype=float), tasks.shape)
        axes.plot(tasks, floor_curve, "s--", color=COLOURS[1], linewidth=1.5, markersize=4, label=FLOOR_LABEL)
    if chance is not None:
        chance = np.broadcast_to(100 * np.asarray(chance, dtype=float), tasks.shape)
        axes.plot(tasks, chance, ".:", color="#555555", linewidth=1.5, markersize=3, label="chance")
    axes.set_xticks(tasks)
    axes.set_xlim(-0.3, len(tasks) - 0.7)
    axes.set_ylim(0, 102)
    axes.set_xlabel("after task")
    axes.set_ylabel("mean accuracy (%)")
    tidy(axes)
    # The legend is above the axes: inside, it would cover a curve; below, the caption.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12)
    add_caption(figure, _growing_caption() if classes_grow else "")
    return save(figure, path)


def _growing_caption():
    """Say why accuracies fall without forgetting, and which protocols show forgetting alone."""
    caption = (
        "The classifier chooses among more classes after each task, so these accuracies fall even for an encoder that "
        "forgets nothing"
    )
    free = [f"`{name}`" for name in fixed()]
    protocols, are = ("protocols", "are") if len(free) > 1 else ("protocol", "is")
    return f"{caption}; the {protocols} {in_words(free)} {are} free of that."


def plot_confusion(
    confusion: np.ndarray, class_names: Sequence[str], path: str | Path, title: str = "Confusion matrix"
) -> Path:
    """Draw a confusion matrix, each row divided by the clips of its true class.

    Parameters
    ----------
    confusion : array of int [C, C]
        Counts of clips, rows = true class, columns = predicted class. A class without clips is a blank row.
    class_names : sequence of str [C]
        Names, in the order of the matrix.
    path : str or Path
        The PNG file.
    title : str
    """
    from matplotlib.colors import PowerNorm

    confusion = np.asarray(confusion, dtype=float)
    n_classes = len(confusion)
    totals = confusion.sum(axis=1, keepdims=True)
    percent = 100 * np.divide(confusion, totals, out=np.full_like(confusion, np.nan), where=totals > 0)  # [C, C]
    small = n_classes <= MAX_CELL_NUMBERS
    side = 3.2 + 0.44 * n_classes if small else 10.5
    figure = make_figure(side + 1.0, side)
    axes = figure.add_subplot()
    axes.set_facecolor("#DDDDDD")
    # Among many classes the confusions are a few percent each; a square-root scale keeps them visible.
    image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(1.0 if small else 0.5, vmin=0, vmax=100))
    if small:
        for i, j in np.argwhere(percent >= 0.5):
            colour = "white" if percent[i, j] > 55 else "black"
            axes.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
        separate_cells(axes, n_classes, n_classes)
    n_ticks = _name_classes(axes, class_names, small)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    add_colour_bar(figure, image, axes, f"clips of the true class (%{'' if small else ', square-root scale'})")
    add_title(figure, axes, title)
    add_caption(figure, _confusion_caption(n_classes, n_ticks, int((totals == 0).sum())))
    return save(figure, path)


def _name_classes(axes, class_names, small):
    """Label both axes with as many class names as there is room for; how many those are."""
    ticks = np.arange(0, len(class_names), -(-len(class_names) // MAX_TICK_LABELS))
    names = [textwrap.shorten(str(class_names[k]), 28, placeholder="…") for k in ticks]
    size = 9 if small else 7
    axes.set_xticks(ticks, names, fontsize=size, **(SLANTED if small else {"rotation": 90}))
    axes.set_yticks(ticks, names, fontsize=size)
    return len(ticks)


def _confusion_caption(n_classes, n_ticks, n_empty):
    parts = [f"{n_ticks} of {n_classes} classes are named."] if n_ticks < n_classes else []
    if n_empty:
        parts.append(f"Grey: {n_empty} class{'es' if n_empty > 1 else ''} without test clips.")
    return " ".join(parts)
