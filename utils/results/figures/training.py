"""The figure of a training run: loss, spread of the embeddings and learning rate over the epochs."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.results.figures.canvas import COLOURS, make_figure, save, tidy


def plot_training(
    log: str | Path | pd.DataFrame, path: str | Path, title: str = "Training", losses: Sequence[str] = ()
) -> Path:
    """Draw loss, spread of the embeddings and learning rate over the epochs of all tasks, every other task shaded.

    Parameters
    ----------
    log : str, Path or pandas.DataFrame
        CSV file or table, a row per epoch, with columns ``task``, ``epoch``, ``loss`` and, if known, ``lr``,
        ``valid_loss`` and those of `utils.training.collapse.Spread` (``emb_std``, ``emb_rank``, ``rank_max``,
        ``z_std``, ``z_rank``). Of an epoch that was logged twice (before and after a crash), the later row counts.
    path : str or Path
        The PNG file.
    title : str
    losses : sequence of str
        Further losses to draw by their names, unweighted, as far as the log has them: those of a strategy.

    Raises
    ------
    ValueError
        A column is missing or there is no row.
    """
    log = _read_log(log)
    tasks, epochs = log["task"].to_numpy(), np.arange(1, len(log) + 1)
    heights = {"loss": 3} | ({"std": 2, "rank": 2} if "emb_std" in log else {}) | ({"lr": 1} if "lr" in log else {})
    figure = make_figure(7.0, 4.2 if len(heights) < 3 else 7.0)
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=list(heights.values()))[:, 0]
    style = {"linewidth": 1.6, "marker": "o" if len(log) < 60 else None, "markersize": 3}
    panels[0].plot(epochs, log["loss"], color=COLOURS[0], label="training", **style)
    if "valid_loss" in log:
        panels[0].plot(epochs, log["valid_loss"], color=COLOURS[1], linestyle="--", label="validation", **style)
    _draw_further_losses(panels[0], epochs, log[[name for name in losses if name in log]], style)
    if len(panels[0].lines) > 1:
        panels[0].legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("loss")
    if "std" in heights:
        _draw_spread(panels[1:3], epochs, log, style)
    if "lr" in heights:
        panels[-1].plot(epochs, log["lr"], color="#555555", linewidth=1.4)
        panels[-1].set_ylabel("learning rate")
        panels[-1].set_ylim(bottom=0)
    for axes in panels:
        _shade_tasks(axes, tasks)
        tidy(axes)
        axes.set_xlim(0.5, len(log) + 0.5)
    _name_tasks(panels[0], tasks)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("epoch, counted over all tasks")
    figure.suptitle(title, fontsize=12)
    return save(figure, path)


def _draw_further_losses(axes, epochs, losses, style):
    """Draw a strategy's losses, a column each; an epoch without them leaves a gap."""
    lines = itertools.product((":", "-."), COLOURS[::-1])
    for name, (line, colour) in zip(losses, itertools.cycle(lines), strict=False):
        axes.plot(epochs, losses[name], color=colour, linestyle=line, label=name, **style)


def _draw_spread(panels, epochs, log, style):
    """Draw spread and effective rank of the embeddings and, where the log has them, of the loss's inputs."""
    looks = {"emb": ("embeddings", COLOURS[0], "-"), "z": ("z, what the loss compares", COLOURS[2], "--")}
    for name in (name for name in looks if f"{name}_std" in log):
        label, colour, line = looks[name]
        for axes, measure in zip(panels, ("std", "rank"), strict=True):
            axes.plot(epochs, log[f"{name}_{measure}"], color=colour, linestyle=line, label=label, **style)
    panels[0].set_ylim(0, 1.05)
    panels[0].set_ylabel("std, normalised")
    panels[0].legend(loc="best", ncols=2, frameon=False, fontsize=8)
    bound = panels[1].plot(
        epochs, log["rank_max"], ":", color="#555555", linewidth=1.4, drawstyle="steps-mid", label="bound"
    )
    panels[1].set_yscale("log", base=4)
    panels[1].set_ylim(0.8, 1.5 * log["rank_max"].max())
    panels[1].yaxis.set_major_formatter("{x:g}")
    panels[1].set_ylabel("effective rank")
    panels[1].legend(handles=bound, loc="best", frameon=False, fontsize=8)


def _read_log(log):
    where = "the log" if isinstance(log, pd.DataFrame) else log
    log = log if isinstance(log, pd.DataFrame) else pd.read_csv(log)
    missing = {"task", "epoch", "loss"} - set(log.columns)
    if missing or log.empty:
        raise ValueError(f"{where} has no " + (f"column {', '.join(sorted(missing))}" if missing else "row"))
    return log.drop_duplicates(["task", "epoch"], keep="last").sort_values(["task", "epoch"], ignore_index=True)


def _task_spans(tasks):
    """List (task, first epoch, last epoch), epochs counted from 1 over all tasks."""
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
