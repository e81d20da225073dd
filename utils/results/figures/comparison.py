"""The report's figures: methods compared, with floor and ceiling; their differences from a baseline."""

import math
import textwrap
from collections.abc import Collection
from pathlib import Path

import numpy as np

from utils.results.figures.canvas import COLOURS, FLOOR_LABEL, make_figure, save, tidy

ACROSS = 6  # columns in a line
METHOD = {"color": COLOURS[0]}
CEILING = {"color": COLOURS[2], "linestyle": "--", "linewidth": 1.4}
INTERVAL = {"linewidth": 5, "alpha": 0.3, "solid_capstyle": "butt"}
FLOOR_BAND = {"color": COLOURS[1], "alpha": 0.13, "linewidth": 0, "zorder": 1}
NO_DIFFERENCE = {"color": "#777777", "markerfacecolor": "white"}
FLOOR = {"color": COLOURS[1], "linewidth": 1.6}
SEED = {"linestyle": "", "marker": "o", "markersize": 5, "alpha": 0.5, "markeredgewidth": 0}
MEAN = {"linestyle": "", "marker": "|", "markersize": 13, "markeredgewidth": 2.5}


def plot_report(
    panels: dict[str, dict], path: str | Path, ceilings: Collection[str] = (), title: str = "Methods compared"
) -> Path:
    """Draw methods x columns: a row per method, a dot for each seed, mean and interval, lines for floor and ceiling.

    Parameters
    ----------
    panels : dict of str to dict
        Per panel title, per method, per column: ``(values, floor)`` or ``(values, floor, interval, floor_interval)``:
        the seeds' values (list), the floor (a number or NaN), and the 95 % intervals of mean and floor, (low, high) or
        None; in the unit that the column's name gives. A column that was not run is absent, or its list is empty.
        Columns without any floor are amounts, time for example: they begin at 0 and have no ceiling.
    path : str or Path
        The PNG file.
    ceilings : collection of str
        Methods that the others are measured against: their mean is drawn as a line through the whole panel.
    title : str
    """
    figure, lines = _make_grid(panels, least=4.6, column=1.6, rest=1.4)
    floors = {name for panel in panels.values() for m in panel.values() for name in m if np.isfinite(m[name][1])}
    for columns, grid in lines:
        for row, (name, panel) in zip(grid, panels.items(), strict=True):
            for axes, column in zip(row, columns, strict=True):
                cells_of = {method: cells.get(column, ((), np.nan)) for method, cells in panel.items()}
                _draw_panel(axes, cells_of, ceilings)
            _name_rows(row, name, panel)
        for axes, column in zip(grid[-1], columns, strict=True):
            if column not in floors:
                _begin_at_zero(axes)
    figure.suptitle(title, fontsize=12)
    has_ceiling = any(method in ceilings for panel in panels.values() for method in panel)
    drawn = [cell for panel in panels.values() for cells in panel.values() for cell in cells.values()]
    has_interval = any(interval for cell in drawn for interval in cell[2:])
    handles, n = _legend_handles(has_ceiling, has_interval), 5 if len(lines[0][0]) > 2 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=n, frameon=False, fontsize=9)
    return save(figure, path)


def _draw_panel(axes, methods, ceilings):
    """Draw one column of one panel: {method: (values, floor, ...)} from the top down."""
    for y, (method, (values, floor, *intervals)) in enumerate(methods.items()):
        interval, floor_interval = intervals or (None, None)
        values = np.asarray([value for value in values if np.isfinite(value)])
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
        if floor_interval:
            axes.fill_betweenx([y - 0.5, y + 0.5], *floor_interval, **FLOOR_BAND)
        if np.isfinite(floor):  # a piece in each row: equal floors make one line
            axes.plot([floor, floor], [y - 0.5, y + 0.5], solid_capstyle="butt", **FLOOR)
        if len(values):
            style = CEILING if method in ceilings else METHOD
            if interval:
                axes.plot(interval, [y, y], **INTERVAL, color=style["color"])
            axes.plot(values, np.full(len(values), y), **SEED, color=style["color"])
            axes.plot(values.mean(), y, **MEAN, color=style["color"])
            if method in ceilings and np.isfinite(floor):
                axes.axvline(values.mean(), **CEILING)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    tidy(axes, grid="x")


def _begin_at_zero(axes):
    """Show the x axis from 0 on, in all axes that share it; call this once all of them are drawn."""
    axes.update_datalim([(0, 0)])  # so that the margin on the right is a share of the whole range
    axes.autoscale_view()
    axes.set_xlim(left=0)


def _legend_handles(has_ceiling, has_interval):
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **SEED, color=METHOD["color"], label="one seed"),
        Line2D([], [], **MEAN, color=METHOD["color"], label="mean"),
        Line2D([], [], **FLOOR, label=FLOOR_LABEL),
    ]
    if has_interval:
        handles.insert(2, Line2D([], [], **INTERVAL, color=METHOD["color"], label="95 % interval"))
    return handles + ([Line2D([], [], **CEILING, label="all classes at once (ceiling)")] if has_ceiling else [])


def _make_grid(panels, least, column, rest):
    """Make a figure with axes for each panel and column, at most `ACROSS` columns in a line; sizes in inches.

    Returns
    -------
    figure, lines
        The figure, and by line its columns' names, which are written below them, and its axes [panels, columns].
    """
    columns = list(dict.fromkeys(name for panel in panels.values() for cells in panel.values() for name in cells))
    n_methods = [len(panel) for panel in panels.values()]
    n_lines = max(1, math.ceil(len(columns) / ACROSS))
    across = max(1, math.ceil(len(columns) / n_lines))
    height = 0.45 * len(panels) + 0.34 * sum(n_methods)
    figure = make_figure(max(least, 2.4 + column * across), rest + n_lines * height + 0.7 * (n_lines - 1))
    how = {"squeeze": False, "sharey": "row", "height_ratios": n_lines * n_methods}
    axes = figure.subplots(n_lines * len(panels), across, **how).reshape(n_lines, len(panels), across)
    lines = []
    for line, grid in enumerate(axes):
        names = columns[line * across : (line + 1) * across]
        for place in range(across):
            *above, last = grid[:, place]
            for upper in above:
                upper.sharex(last)
                upper.tick_params(labelbottom=False)
            if place < len(names):
                last.set_xlabel(textwrap.fill(names[place], 18))
            else:
                for empty in grid[:, place]:
                    empty.set_visible(False)
        lines.append((names, grid[:, : len(names)]))
    return figure, lines


def _name_rows(row, title, methods):
    """Write a panel's title above its first axes, and the methods beside it."""
    row[0].set_yticks(range(len(methods)), [textwrap.fill(method, 30) for method in methods], fontsize=9)
    row[0].set_title(title, loc="left", fontsize=10, fontweight="bold")


def plot_differences(panels: dict[str, dict], baselines: dict[str, str], path: str | Path) -> Path:
    """Draw the differences from a baseline: a row per method; grey and hollow where the interval holds 0.

    Parameters
    ----------
    panels : dict of str to dict
        Per panel title, per method, per column: ``(difference, interval)``, the interval (low, high) or None.
    baselines : dict of str to str
        Per panel title: the method that the others are compared with.
    path : str or Path
        The PNG file.
    """
    figure, lines = _make_grid(panels, least=5.2, column=1.7, rest=1.6)
    for columns, grid in lines:
        for row, (name, panel) in zip(grid, panels.items(), strict=True):
            for axes, column in zip(row, columns, strict=True):
                _draw_differences(axes, [cells.get(column) for cells in panel.values()])
            _name_rows(row, f"{name}: minus {baselines[name]}", panel)
    figure.suptitle("Differences from the baseline", fontsize=12)
    n = 2 if len(lines[0][0]) > 3 else 1
    figure.legend(handles=_difference_handles(), loc="outside lower center", ncols=n, frameon=False, fontsize=9)
    return save(figure, path)


def _draw_differences(axes, cells):
    """Draw one column of one panel: (difference, interval) or None by method, from the top down."""
    for y, cell in enumerate(cells):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
        if cell:
            _draw_difference(axes, y, *cell)
    axes.axvline(0, color="black", linewidth=0.9)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    tidy(axes, grid="x")


def _draw_difference(axes, y, difference, interval):
    shown = interval is not None and not interval[0] <= 0 <= interval[1]
    style = METHOD if shown else NO_DIFFERENCE
    if interval:
        axes.plot(interval, [y, y], color=style["color"], linewidth=1.8)
    axes.plot(difference, y, marker="o", markersize=6, **style)


def _difference_handles():
    from matplotlib.lines import Line2D

    style = {"marker": "o", "markersize": 6, "linewidth": 1.8}
    return [
        Line2D([], [], **style, **METHOD, label="difference with its 95 % interval"),
        Line2D([], [], **style, **NO_DIFFERENCE, label="none shown: 0 is in the interval, or there is no interval"),
    ]
