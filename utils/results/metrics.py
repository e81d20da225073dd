"""Accuracy tables, and the continual-learning metrics computed from them.

The table ``a`` has one row per saved encoder and one column per test task: ``a[i, j]`` is the accuracy, a fraction, on
task ``j`` with the encoder saved after task ``i``. A cell that was not evaluated is NaN, never 0, and so is every
metric that needs the cell.

Sources: GEM (arXiv 1706.08840: ACC, BWT, FWT), iCaRL (arXiv 1611.07725: average incremental accuracy) and RWalk
(arXiv 1801.10112: forgetting).

Shapes: N encoders, T test tasks, C classes.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.io.errors import InputError
from utils.io.files import write_atomically

METRICS = ("acc", "micro_accuracy", "average_incremental_accuracy", "bwt", "forgetting", "fwt")


def accuracy_table(
    confusions: Sequence[np.ndarray | None],
    task_of_class: Sequence[int],
    evaluated: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """Compute the accuracy of every encoder on every test task.

    Parameters
    ----------
    confusions : sequence of (array of int [C, C] or None)
        One confusion matrix per encoder: counts of clips, rows = true class, columns = predicted class. None: not
        evaluated.
    task_of_class : sequence of int [C]
        Test task of each class, counted from 0; -1 for a class that no task uses.
    evaluated : sequence of (sequence of int), optional
        The test tasks that were evaluated, per encoder. By default every task that has clips in the matrix.

    Returns
    -------
    numpy.ndarray of float [N, T]
        Correct clips / clips, over the clips whose true class belongs to the task. NaN where not evaluated.

    Raises
    ------
    ValueError
        If shapes disagree, or a matrix has a negative count.
    """
    task_of_class = np.asarray(task_of_class, dtype=int)  # [C]
    n_tasks = int(task_of_class.max(initial=-1)) + 1
    if evaluated is not None and len(evaluated) != len(confusions):
        raise ValueError(f"{len(confusions)} confusion matrices, but `evaluated` has the tasks of {len(evaluated)}")
    table = np.full((len(confusions), n_tasks), np.nan)
    for i, confusion in enumerate(confusions):
        if confusion is None:
            continue
        confusion = _as_confusion(confusion)
        if len(confusion) != len(task_of_class):
            raise ValueError(f"confusion matrix {i}: {len(confusion)} classes, `task_of_class`: {len(task_of_class)}")
        for j in range(n_tasks) if evaluated is None else evaluated[i]:
            rows = confusion[task_of_class == j]  # [classes of task j, C]
            correct = np.diag(confusion)[task_of_class == j].sum()
            if rows.sum() > 0:
                table[i, j] = correct / rows.sum()
    return table


def micro_accuracy(confusion: np.ndarray) -> float:
    """Divide correct clips by clips, so that a class weighs as much as it has clips; NaN without clips.

    Parameters
    ----------
    confusion : array of int [C, C]
        Rows = true class, columns = predicted class.
    """
    confusion = _as_confusion(confusion)
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total > 0 else float("nan")


def per_class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Compute the recall of each true class: [C, C] counts -> [C] fractions, NaN for a class without clips."""
    confusion = _as_confusion(confusion)
    totals = confusion.sum(axis=1)  # [C]
    return np.divide(np.diag(confusion), totals, out=np.full(len(confusion), np.nan), where=totals > 0)


def _as_confusion(confusion):
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"a confusion matrix is [classes, classes]; this one has shape {list(confusion.shape)}")
    if (confusion < 0).any():
        raise ValueError("a confusion matrix counts clips; this one has a negative entry")
    return confusion


def mean_over_seen(table: np.ndarray, aligned: bool = True) -> np.ndarray:
    """Average the accuracy over the tasks seen so far, after each task.

    Parameters
    ----------
    table : array of float [N, T]
        Accuracies, fractions.
    aligned : bool
        Row ``i`` was saved after test task ``i``. Otherwise (another number of encoders than of tasks, or encoders of
        another dataset) no task is "to come", and the mean is over all of them.

    Returns
    -------
    numpy.ndarray of float [N]
        NaN where one of the cells is missing.
    """
    table = _as_table(table)
    n_encoders, n_tasks = table.shape
    seen = [i + 1 if aligned and n_encoders == n_tasks else n_tasks for i in range(n_encoders)]
    return np.array([_mean(table[i, :n]) for i, n in enumerate(seen)])


def continual_metrics(table: np.ndarray, floor: np.ndarray | None = None, aligned: bool = True) -> dict[str, float]:
    """Compute all metrics of one table; NaN where a metric can't be computed.

    Parameters
    ----------
    table : array of float [N, T]
        Accuracies, fractions; NaN where not evaluated. The last row is the final encoder.
    floor : array of float [T], optional
        Accuracy per task of an encoder with random weights, for `fwt`.
    aligned : bool
        Row ``i`` was saved after test task ``i``. False where the encoders come from another dataset's tasks; taken as
        False where N != T.

    Returns
    -------
    dict of str to float
        ``acc``: mean over tasks of the last row (GEM).
        ``average_incremental_accuracy``: mean over i of the mean accuracy over tasks 0..i (iCaRL).
        ``bwt``: mean over j < T-1 of a[T-1, j] - a[j, j]; negative = forgets (GEM).
        ``forgetting``: mean over j < T-1 of max_{j <= l < T-1} a[l, j] - a[T-1, j]; negative = improves (RWalk).
        ``fwt``: mean over j > 0 of a[j-1, j] - floor[j] (GEM); needs encoders that were tested on tasks to come.

    Raises
    ------
    ValueError
        If the table is not 2-D or empty, or the floor has another number of tasks.

    Examples
    --------
    >>> nan = float("nan")
    >>> metrics = continual_metrics([[0.80, nan, nan], [0.75, 0.82, nan], [0.85, 0.78, 0.90]])
    >>> {name: round(100 * metrics[name], 2) for name in ("acc", "bwt", "forgetting")}
    {'acc': 84.33, 'bwt': 0.5, 'forgetting': -0.5}
    """
    table = _as_table(table)
    n_encoders, n_tasks = table.shape
    if floor is not None:
        floor = np.asarray(floor, dtype=float)
        if floor.shape != (n_tasks,):
            raise ValueError(f"`floor` is one row of {n_tasks} accuracies; it has shape {list(floor.shape)}")
    metrics = dict.fromkeys(("average_incremental_accuracy", "bwt", "forgetting", "fwt"), float("nan"))
    metrics = {"acc": _mean(table[-1]), **metrics}
    if not aligned or n_encoders != n_tasks:
        return metrics
    last, learnt = table[-1], np.diag(table)  # [T] both
    metrics["average_incremental_accuracy"] = _mean(mean_over_seen(table))
    metrics["bwt"] = _mean((last - learnt)[:-1])
    # The maximum is over EARLIER encoders: with the last row among them, forgetting could never be negative.
    # numpy's max of values with a NaN is NaN, as it must be: the missing cell might have been the best.
    best = np.array([table[j:-1, j].max() for j in range(n_tasks - 1)])
    metrics["forgetting"] = _mean(best - last[:-1])
    if floor is not None:
        metrics["fwt"] = _mean(np.diag(table, k=1) - floor[1:])
    return metrics


def _as_table(table):
    table = np.asarray(table, dtype=float)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"an accuracy table is [encoders, test tasks]; this one has shape {list(table.shape)}")
    return table


def _mean(values):
    return float(np.mean(values)) if len(values) else float("nan")


def write_table(path: str | Path, table: np.ndarray, task_names: Sequence[str] | None = None):
    """Save an accuracy table as CSV: a row per encoder, a column per test task, fractions, an empty cell for NaN.

    Parameters
    ----------
    path : str or Path
        Usually ``accuracy_table.csv``.
    table : array of float [N, T]
        Accuracies, fractions.
    task_names : sequence of str [T], optional
        Column names; ``task0``, ``task1``, ... by default.
    """
    table = _as_table(table)
    names = [f"task{j}" for j in range(table.shape[1])] if task_names is None else list(task_names)
    if len(names) != table.shape[1]:
        raise ValueError(f"{len(names)} task names for a table of {table.shape[1]} test tasks")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["encoder", *names])
    for i, row in enumerate(table):
        # repr of a Python float reads back to the same bits.
        writer.writerow([i, *("" if np.isnan(cell) else repr(float(cell)) for cell in row)])
    write_atomically(path, text.getvalue())


def read_table(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Read a file that `write_table` wrote: the table [N, T], NaN for an empty cell, and the task names [T].

    Raises
    ------
    InputError
        The file is no accuracy table.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is no accuracy table: {error}") from None
    if len(lines) < 2 or lines[0][:1] != ["encoder"] or len(lines[0]) < 2 or len({len(line) for line in lines}) != 1:
        raise InputError(f"{path} is no accuracy table: expected `encoder,task0,task1,...`, then one line per encoder")
    try:
        table = np.array([[float(cell) if cell else np.nan for cell in line[1:]] for line in lines[1:]])
    except ValueError as error:
        raise InputError(f"{path} is no accuracy table: {str(error)[:120]}") from None
    if not ((table >= 0) & (table <= 1) | np.isnan(table)).all():
        raise InputError(f"{path} is no accuracy table: accuracies are from 0 to 1")
    return table, lines[0][1:]
