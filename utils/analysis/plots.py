"""The notebook's figures: every function takes values and returns a matplotlib Figure.

Shapes: E encoders, n clips, F mel bands, L frames.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

# Paul Tol's muted colours (personal.sron.nl/~pault), with near-black in place of his pale grey. The order is our own:
# the classes of one task share a marker, so two colours in a row must differ under every kind of colour blindness.
CLASS_COLOURS = ("#332288", "#CC6677", "#DDCC77", "#88CCEE", "#117733",
                 "#AA4499", "#882255", "#999933", "#44AA99", "#222222")  # fmt: skip
TASK_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
SPLIT_STYLES = {"train": {"alpha": 0.35, "s": 16, "linewidths": 0}}  # in the background
OTHER_SPLITS = {"alpha": 1.0, "s": 40, "linewidths": 0.6, "edgecolors": "white"}
STAGES = {"learnt before": "#0072B2", "learnt in this step": "#D55E00", "not yet learnt": "#7F7F7F"}


def _panels(count, columns, width, height, margin=(0.0, 0.0), **kwargs):
    """Make a figure with `count` panels of that many inches, and room beside and below them."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    lines = -(-count // columns)
    size = (columns * width + margin[0], lines * height + margin[1])
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    grid = figure.subplots(lines, columns, squeeze=False, **kwargs).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    for axes in grid[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, labelbottom=True)
    return figure, grid[:count]


def _styles(rows):
    """Choose (colour, marker) of each class name, by task and label; both repeat after ten."""
    classes = rows.drop_duplicates("class_name").sort_values(["task", "label"])
    tasks = {task: place for place, task in enumerate(sorted(set(rows["task"])))}
    return {
        name: (CLASS_COLOURS[place % len(CLASS_COLOURS)], TASK_MARKERS[tasks[task] % len(TASK_MARKERS)])
        for place, (name, task) in enumerate(zip(classes["class_name"], classes["task"], strict=True))
    }


def _scatter(axes, points, rows):
    """Draw the clips, training clips behind the others."""
    styles = _styles(rows)
    behind_first = sorted(set(rows["split"]), key=lambda split: split not in SPLIT_STYLES)
    for zorder, split in enumerate(behind_first, start=2):
        for name, (colour, marker) in styles.items():
            chosen = ((rows["split"] == split) & (rows["class_name"] == name)).to_numpy()
            style = SPLIT_STYLES.get(split, OTHER_SPLITS)
            axes.scatter(*points[chosen].T, color=colour, marker=marker, zorder=zorder, **style)


def _square(axes, points):
    """Give all panels the same square and ticks, so that a position can be read off any of them."""
    low, high = points.reshape(-1, 2).min(axis=0), points.reshape(-1, 2).max(axis=0)
    middle, reach = (low + high) / 2, 0.55 * max(*(high - low), 1e-9)
    axes.set_xlim(middle[0] - reach, middle[0] + reach)
    axes.set_ylim(middle[1] - reach, middle[1] + reach)
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
    axes.grid(color="#EEEEEE", linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(figure, rows):
    """List the classes under their task, and how the splits differ, to the right of all panels."""
    from matplotlib.lines import Line2D

    styles, blank = _styles(rows), Line2D([], [], linestyle="none")
    entries = []
    for task, group in rows.drop_duplicates("class_name").sort_values(["task", "label"]).groupby("task"):
        entries.append((blank, f"task {task}"))
        for name in group["class_name"]:
            colour, marker = styles[name]
            entries.append((Line2D([], [], linestyle="none", color=colour, marker=marker, markersize=6.5), name))
    splits = sorted(set(rows["split"]))
    if len(splits) > 1:
        others = ", ".join(split for split in splits if split not in SPLIT_STYLES)
        entries += [(blank, "split")] + [(Line2D([], [], linestyle="none", color="#222222", marker="o", alpha=0.35,
                                                 markersize=4.5), "train: small, faint"),
                                         (Line2D([], [], linestyle="none", color="#222222", marker="o",
                                                 markersize=6.5), f"{others}: large, solid")]  # fmt: skip
    handles, labels = zip(*entries, strict=True)
    legend = figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, handletextpad=0.2)
    for handle, text in zip(handles, legend.get_texts(), strict=True):
        text.set_fontweight("bold" if handle is blank else "normal")


def plot_projection(
    points: np.ndarray, rows: pd.DataFrame, names: Sequence[str], title: str, frame: np.ndarray | None = None
):
    """Draw the clips in the plane, a panel per encoder: colour is the class, marker the task, training clips are faint.

    Parameters
    ----------
    points : numpy.ndarray
        [E, n, 2].
    rows : pandas.DataFrame
        The clips' `class_name`, `split`, `label`, `task`.
    names : sequence of str
        [E], over the panels.
    title : str
    frame : numpy.ndarray, optional
        [..., 2], the points that the axes make room for; `points` by default.
    """
    side = 3.0 if len(points) > 1 else 5.4
    columns = 3 if len(points) <= 6 else 4
    figure, panels = _panels(len(points), columns, side, side + 0.2, margin=(1.9, 0.4))
    for axes, name, picture in zip(panels, names, points, strict=True):
        _scatter(axes, picture, rows)
        _square(axes, points if frame is None else frame)
        axes.set_title(name, fontsize=10)
    _legend(figure, rows)
    figure.suptitle(title, fontsize=12)
    return figure


def plot_drift(drifts: np.ndarray, rows: pd.DataFrame, names: Sequence[str], learns: Sequence[int] | None = None):
    """Draw how far the clips of each task moved, a panel per step from an encoder to the next.

    Parameters
    ----------
    drifts : array of float
        [E - 1, n], see `utils.analysis.measures.drift`.
    rows : pandas.DataFrame
        The clips' `task` and `split`.
    names : sequence of str
        [E], the encoders.
    learns : sequence of int, optional
        [E - 1], the task that each step learns; None where the encoders learnt from other data.
    """
    tasks = sorted(set(rows["task"]))
    figure, panels = _panels(len(drifts), 5, max(2.0, 0.6 + 0.28 * len(tasks)), 3.2, (0.4, 0.9), sharey=True)
    for step, (axes, moved) in enumerate(zip(panels, drifts, strict=True)):
        for x, task in enumerate(tasks):
            _drift_column(axes, x, moved, rows, task, _stage(task, learns[step]) if learns is not None else "")
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set_xlim(-0.6, len(tasks) - 0.4)
        axes.set_title(f"{names[step]}\nto {names[step + 1]}", fontsize=9)
        axes.set_xlabel("task of the clips", fontsize=9)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
    panels[0].set_ylim(bottom=0)
    for axes in panels[::5]:
        axes.set_ylabel("moved by (1 - cosine)")
    _stage_legend(figure, learns is not None)
    figure.suptitle("How far each clip's embedding moved in each step", fontsize=12)
    return figure


def _stage(task, learning):
    return list(STAGES)[(task >= learning) + (task > learning)]


def _drift_column(axes, x, moved, rows, task, stage):
    """Draw the clips of one task as points side by side, and their median as a dash."""
    values = moved[(rows["task"] == task).to_numpy()]
    beside = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.zeros(1)
    axes.scatter(x + beside, values, s=7, color=STAGES.get(stage, "#7F7F7F"), alpha=0.45, linewidths=0)
    axes.plot([x - 0.36, x + 0.36], [np.median(values)] * 2, color="black", linewidth=1.8)


def _stage_legend(figure, with_stages):
    from matplotlib.lines import Line2D

    point = {"linestyle": "none", "marker": "o", "markersize": 5}
    marks = {f"task {stage}": Line2D([], [], color=colour, **point) for stage, colour in STAGES.items()}
    marks = (marks if with_stages else {}) | {"median": Line2D([], [], color="black", linewidth=1.8)}
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def plot_cka(table: np.ndarray, names: Sequence[str]):
    """Draw a heat map of the likeness of every two encoders: `utils.analysis.measures.linear_cka`, [E, E]."""
    table = np.asarray(table, dtype=float)
    side = 2.4 + 0.5 * len(table)
    figure, (axes,) = _panels(1, 1, side + 0.8, side)
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=1)
    for i, j in np.argwhere(np.isfinite(table)):
        colour = "black" if table[i, j] > 0.47 else "white"  # the better contrast on cividis
        axes.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label="linear CKA", shrink=0.9, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.outline.set_visible(False)
    axes.set_title("How alike two encoders arrange the clips", fontsize=12)
    return figure


def plot_clip(points: np.ndarray, rows: pd.DataFrame, number: int, features: np.ndarray, seconds: float, name: str):
    """Draw where a clip lies among the others, and its log-mel.

    Parameters
    ----------
    points : numpy.ndarray
        [n, 2].
    rows : pandas.DataFrame
    number : int
        The clip's row.
    features : numpy.ndarray
        [L, F], log-mel in dB.
    seconds : float
        Length of the clip.
    name : str
        The encoder's.
    """
    figure, (place, mel) = _panels(2, 2, 4.2, 4.2, margin=(1.9, 0.0))
    _scatter(place, points, rows)
    _square(place, points)
    ring = {"s": 260, "facecolors": "none", "linewidths": 2.2}
    place.scatter(*points[number], edgecolors="black", zorder=9, **ring)
    place.set_title(f"ringed, {name}", fontsize=10)
    image = mel.imshow(
        features.T, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, len(features[0]))
    )
    figure.colorbar(image, ax=mel, label="dB", pad=0.02).outline.set_visible(False)
    mel.set_xlabel("seconds")
    mel.set_ylabel("mel band")
    row = rows.iloc[number]
    mel.set_title(f"clip {number}: {row['class_name']}, task {row['task']}, {row['split']}", fontsize=10)
    _legend(figure, rows)
    return figure
