"""Figures of an experiment, as PNG files. Every function takes values, writes one file and returns its path.

matplotlib is imported when a figure is drawn, and only its object interface: no pyplot state, no window, nothing to
close. Colours are Okabe and Ito's, which colour-blind readers tell apart; lines and marks differ in shape too.

Shapes: N encoders, T test tasks, C classes. Accuracies come as fractions and are drawn in percent.
"""

import io
import textwrap
from pathlib import Path

import numpy as np

from utils.io.files import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
SEEN_CAPTION = (
    "The classifier chooses among more classes after each task, so these accuracies fall even for an encoder that "
    "forgets nothing; the protocol `full` is free of that."
)
FLOOR_LABEL = "random weights (floor)"
MAX_CELL_NUMBERS = 20  # classes; beyond it a confusion matrix has no room for numbers
MAX_TICK_LABELS = 60  # labels per axis; beyond it they are thinned


def plot_accuracy_table(
    table, path, task_names=None, title="Accuracy on each test task", protocol=None, row_names=None
):
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
        Over the figure.
    protocol : str, optional
        seen, subset, buffer or full. Unless it is full, the caption says why accuracies fall without forgetting.
    row_names : sequence of str [N], optional
        Labels of the rows; 0, 1, ... by default.

    Returns
    -------
    Path
        The file written.
    """
    percent = 100 * np.asarray(table, dtype=float)  # [N, T]
    n_rows, n_columns = percent.shape
    task_names = [f"task{j}" for j in range(n_columns)] if task_names is None else list(task_names)
    task_names = [textwrap.shorten(name, 28, placeholder="…") for name in task_names]
    slanted = max(map(len, task_names)) > 8
    figure = _figure(max(4.6, 2.2 + 0.72 * n_columns), max(2.8, 1.9 + 0.5 * n_rows + 0.4 * slanted))
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for i, j in np.argwhere(np.isfinite(percent)):
        colour = "black" if percent[i, j] > 47 else "white"  # the better contrast on cividis
        axes.text(j, i, f"{percent[i, j]:.1f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(n_columns), task_names, **(_SLANTED if slanted else {}))
    axes.set_yticks(range(n_rows), range(n_rows) if row_names is None else row_names)
    _grid_between_cells(axes, n_rows, n_columns)
    axes.set_xlabel("test task")
    axes.set_ylabel("encoder saved after task")
    _colour_bar(figure, image, axes, "accuracy (%)")
    _title(figure, axes, title)
    _caption(figure, SEEN_CAPTION if _classes_grow(protocol) else None)
    return _save(figure, path)


def plot_accuracy_over_tasks(
    curve, floor_curve, path, chance=None, title="Accuracy on the tasks seen so far", protocol=None, label="trained"
):
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
        Over the figure.
    protocol : str, optional
        seen, subset, buffer or full. Unless it is full, the caption says why accuracies fall without forgetting.
    label : str
        Name of the curve in the legend.

    Returns
    -------
    Path
        The file written.
    """
    curve = 100 * np.asarray(curve, dtype=float)
    tasks = np.arange(len(curve))
    figure = _figure(5.6, 3.8)
    axes = figure.add_subplot()
    axes.plot(tasks, curve, "o-", color=COLOURS[0], linewidth=2, markersize=6, label=label)
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
    _tidy(axes)
    # Above the axes: inside, it would cover a curve; below, the caption.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12)
    _caption(figure, SEEN_CAPTION if _classes_grow(protocol) else None)
    return _save(figure, path)


def plot_confusion(confusion, class_names, path, title="Confusion matrix"):
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
        Over the figure.

    Returns
    -------
    Path
        The file written.
    """
    from matplotlib.colors import PowerNorm

    confusion = np.asarray(confusion, dtype=float)
    n_classes = len(confusion)
    totals = confusion.sum(axis=1, keepdims=True)
    percent = 100 * np.divide(confusion, totals, out=np.full_like(confusion, np.nan), where=totals > 0)  # [C, C]
    small = n_classes <= MAX_CELL_NUMBERS
    side = 3.2 + 0.44 * n_classes if small else 10.5
    figure = _figure(side + 1.0, side)
    axes = figure.add_subplot()
    axes.set_facecolor("#DDDDDD")
    # Among many classes the confusions are a few percent each; a square-root scale keeps them visible.
    image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(1.0 if small else 0.5, vmin=0, vmax=100))
    if small:
        for i, j in np.argwhere(percent >= 0.5):
            colour = "white" if percent[i, j] > 55 else "black"
            axes.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
        _grid_between_cells(axes, n_classes, n_classes)
    ticks = np.arange(0, n_classes, -(-n_classes // MAX_TICK_LABELS))
    names = [textwrap.shorten(str(class_names[k]), 28, placeholder="…") for k in ticks]
    size = 9 if small else 7
    axes.set_xticks(ticks, names, fontsize=size, **(_SLANTED if small else {"rotation": 90}))
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _colour_bar(figure, image, axes, f"clips of the true class (%{'' if small else ', square-root scale'})")
    _title(figure, axes, title)
    _caption(figure, _confusion_caption(n_classes, len(ticks), int((totals == 0).sum())))
    return _save(figure, path)


def _confusion_caption(n_classes, n_ticks, n_empty):
    parts = [f"{n_ticks} of {n_classes} classes are named."] if n_ticks < n_classes else []
    if n_empty:
        parts.append(f"Grey: {n_empty} class{'es' if n_empty > 1 else ''} without test clips.")
    return " ".join(parts) or None


def plot_training(log, path, title="Training"):
    """Draw loss, spread of the embeddings and learning rate over the epochs of all tasks, every other task shaded.

    Parameters
    ----------
    log : str, Path or pandas.DataFrame
        CSV file or table, a row per epoch, with columns ``task``, ``epoch``, ``loss`` and, if known, ``lr``,
        ``valid_loss`` and those of `utils.training.collapse.Spread` (``emb_std``, ``emb_rank``, ``rank_max``,
        ``z_std``, ``z_rank``). Of an epoch that stands there twice (a run that died and went on), the later row counts.
    path : str or Path
        The PNG file.
    title : str
        Over the figure.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ValueError
        If a column is missing or there is no row.
    """
    log = _read_log(log)
    epochs = np.arange(1, len(log) + 1)
    heights = {"loss": 3} | ({"std": 2, "rank": 2} if "emb_std" in log else {}) | ({"lr": 1} if "lr" in log else {})
    figure = _figure(7.0, 4.2 if len(heights) < 3 else 7.0)
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=list(heights.values()))[:, 0]
    style = {"linewidth": 1.6, "marker": "o" if len(log) < 60 else None, "markersize": 3}
    panels[0].plot(epochs, log["loss"], color=COLOURS[0], label="training", **style)
    if "valid_loss" in log:
        panels[0].plot(epochs, log["valid_loss"], color=COLOURS[1], linestyle="--", label="validation", **style)
        panels[0].legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("loss")
    if "std" in heights:
        _draw_spread(panels[1:3], epochs, log, style)
    if "lr" in heights:
        panels[-1].plot(epochs, log["lr"], color="#555555", linewidth=1.4)
        panels[-1].set_ylabel("learning rate")
        panels[-1].set_ylim(bottom=0)
    for axes in panels:
        _shade_tasks(axes, log["task"].to_numpy())
        _tidy(axes)
        axes.set_xlim(0.5, len(log) + 0.5)
    _name_tasks(panels[0], log["task"].to_numpy())
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("epoch, counted over all tasks")
    figure.suptitle(title, fontsize=12)
    return _save(figure, path)


def _draw_spread(panels, epochs, log, style):
    """Spread and effective rank of the embeddings and, where the log has them, of what the loss sees."""
    looks = {"emb": ("embeddings", COLOURS[0], "-"), "z": ("z, what the loss compares", COLOURS[2], "--")}
    for name in (name for name in looks if f"{name}_std" in log):
        label, colour, line = looks[name]
        for axes, measure in zip(panels, ("std", "rank"), strict=True):
            axes.plot(epochs, log[f"{name}_{measure}"], color=colour, linestyle=line, label=label, **style)
    panels[0].set_ylim(0, 1.05)
    panels[0].set_ylabel("std, normalised")
    panels[0].legend(loc="best", ncols=2, frameon=False, fontsize=8)
    panels[1].plot(epochs, log["rank_max"], ":", color="#555555", linewidth=1.4, drawstyle="steps-mid", label="bound")
    panels[1].set_yscale("log", base=4)
    panels[1].set_ylim(0.8, 1.5 * log["rank_max"].max())
    panels[1].yaxis.set_major_formatter("{x:g}")
    panels[1].set_ylabel("effective rank")
    panels[1].legend(*_only(panels[1], "bound"), loc="best", frameon=False, fontsize=8)


def _only(axes, label):
    """Handles and labels of a legend with that entry alone."""
    handles, labels = axes.get_legend_handles_labels()
    return [handles[labels.index(label)]], [label]


def _read_log(log):
    import pandas as pd

    where = "the log" if isinstance(log, pd.DataFrame) else log
    log = log if isinstance(log, pd.DataFrame) else pd.read_csv(log)
    missing = {"task", "epoch", "loss"} - set(log.columns)
    if missing or log.empty:
        raise ValueError(f"{where} has no " + (f"column {', '.join(sorted(missing))}" if missing else "row"))
    return log.drop_duplicates(["task", "epoch"], keep="last").sort_values(["task", "epoch"], ignore_index=True)


def _task_spans(tasks):
    """(task, first, last) epochs, counted from 1, of each task."""
    return [(task, *(np.flatnonzero(tasks == task)[[0, -1]] + 1)) for task in np.unique(tasks)]


def _shade_tasks(axes, tasks):
    for k, (_, first, last) in enumerate(_task_spans(tasks)):
        if k % 2:
            axes.axvspan(first - 0.5, last + 0.5, color="#EEEEEE", linewidth=0, zorder=0)


def _name_tasks(axes, tasks):
    spans = _task_spans(tasks)
    for task, first, last in spans:
        name = f"task {task}" if len(spans) <= 12 else str(task)
        place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axes.text((first + last) / 2, 1.01, name, fontsize=9, color="#555555", **place)


def plot_report(panels, path, ceilings=(), title="Methods compared"):
    """Draw methods x columns: a row per method, a dot for each seed, a bar at their mean, lines for floor and ceiling.

    Parameters
    ----------
    panels : dict of str to dict
        Per panel title, per method, per column: ``(values, floor)``, the seeds' values (list) and the floor (a number
        or NaN), in the unit that the column's name gives. A column that was not run is absent, or its list is empty.
        Columns without any floor are amounts, time for example: they begin at 0 and have no ceiling.
    path : str or Path
        The PNG file.
    ceilings : collection of str
        Methods that the others are measured against: their mean is drawn as a line through the whole panel.
    title : str
        Over the figure.

    Returns
    -------
    Path
        The file written.
    """
    columns = list(dict.fromkeys(name for panel in panels.values() for cells in panel.values() for name in cells))
    n_methods = [len(panel) for panel in panels.values()]
    figure = _figure(max(4.6, 2.4 + 1.6 * len(columns)), 1.4 + 0.45 * len(panels) + 0.34 * sum(n_methods))
    grid = figure.subplots(
        len(panels), len(columns), squeeze=False, sharex="col", sharey="row", height_ratios=n_methods
    )
    for row, (name, panel) in zip(grid, panels.items(), strict=True):
        for axes, column in zip(row, columns, strict=True):
            _report_panel(axes, {method: cells.get(column, ((), np.nan)) for method, cells in panel.items()}, ceilings)
        row[0].set_yticks(range(len(panel)), [textwrap.fill(method, 30) for method in panel], fontsize=9)
        row[0].set_title(name, loc="left", fontsize=10, fontweight="bold")
    floors = {name for panel in panels.values() for m in panel.values() for name in m if np.isfinite(m[name][1])}
    for axes, column in zip(grid[-1], columns, strict=True):
        axes.set_xlabel(column)
        if column not in floors:
            _begin_at_zero(axes)
    figure.suptitle(title, fontsize=12)
    has_ceiling = any(method in ceilings for panel in panels.values() for method in panel)
    handles, n = _report_legend(has_ceiling), 4 if len(columns) > 2 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=n, frameon=False, fontsize=9)
    return _save(figure, path)


def _report_panel(axes, methods, ceilings):
    """One column of one panel: {method: (values, floor)} from the top down."""
    for y, (method, (values, floor)) in enumerate(methods.items()):
        values = np.asarray([value for value in values if np.isfinite(value)])
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
        if np.isfinite(floor):  # a piece in each row: equal floors make one line
            axes.plot([floor, floor], [y - 0.5, y + 0.5], solid_capstyle="butt", **_FLOOR)
        if len(values):
            style = _CEILING if method in ceilings else _METHOD
            axes.plot(values, np.full(len(values), y), **_SEED, color=style["color"])
            axes.plot(values.mean(), y, **_MEAN, color=style["color"])
            if method in ceilings and np.isfinite(floor):
                axes.axvline(values.mean(), **_CEILING)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    _tidy(axes, grid="x")


def _begin_at_zero(axes):
    """Show the x axis from 0 on, of all axes that share it; all must be drawn."""
    axes.update_datalim([(0, 0)])  # so that the margin on the right is a share of the whole range
    axes.autoscale_view()
    axes.set_xlim(left=0)


def _report_legend(has_ceiling):
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **_SEED, color=_METHOD["color"], label="one seed"),
        Line2D([], [], **_MEAN, color=_METHOD["color"], label="mean"),
        Line2D([], [], **_FLOOR, label=FLOOR_LABEL),
    ]
    return handles + ([Line2D([], [], **_CEILING, label="all classes at once (ceiling)")] if has_ceiling else [])


_METHOD = {"color": COLOURS[0]}
_CEILING = {"color": COLOURS[2], "linestyle": "--", "linewidth": 1.4}
_FLOOR = {"color": COLOURS[1], "linewidth": 1.6}
_SEED = {"linestyle": "", "marker": "o", "markersize": 5, "alpha": 0.5, "markeredgewidth": 0}
_MEAN = {"linestyle": "", "marker": "|", "markersize": 13, "markeredgewidth": 2.5}


# What all figures share

_SLANTED = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}


def _classes_grow(protocol):
    return protocol is not None and protocol != "full"


def _figure(width, height):
    """A figure of that many inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    return figure


def _tidy(axes, grid="both"):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)


def _grid_between_cells(axes, n_rows, n_columns):
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(n_columns - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(n_rows - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)


def _colour_bar(figure, image, axes, label):
    bar = figure.colorbar(image, ax=axes, label=label, pad=0.02, shrink=0.9, ticks=[0, 20, 40, 60, 80, 100])
    bar.outline.set_visible(False)


def _title(figure, axes, text):
    axes.set_title(textwrap.fill(text, int(figure.get_figwidth() * 10)), fontsize=12)


def _caption(figure, text):
    if text:
        width = int(figure.get_figwidth() * 15.5)  # characters of this size per inch
        figure.supxlabel(textwrap.fill(text, width), fontsize=8, color="#555555", ha="left", x=0.02)


def _save(figure, path):
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_atomically(path, png.getvalue())
    return Path(path)
