"""Assign labels to classes, and classes to tasks."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from datasets.table import seeded_order
from utils.io.errors import InputError


def shuffled(labels: Sequence[int], n_tasks: int, seed: int) -> list[list[int]]:
    """Divide classes into tasks by seed: for YAMLs, ``task_classes: !name:datasets.tasks.shuffled``.

    Returns the labels of each task, in order; the tasks' sizes differ by one at most.

    Raises
    ------
    InputError
        `n_tasks` is no whole number, or larger than the number of classes.
    """
    if isinstance(n_tasks, bool) or not isinstance(n_tasks, int) or not 1 <= n_tasks <= len(labels):
        raise InputError(f"n_tasks is {n_tasks!r}: give a whole number from 1 to {len(labels)}, the number of classes.")
    return [sorted(part.tolist()) for part in np.array_split(seeded_order(labels, seed), n_tasks)]


def resolve_tasks(
    rows: pd.DataFrame,
    classes: Sequence[str],
    task_classes: Sequence | Callable,
    before: Iterable[Sequence[Sequence[str]]] = (),
) -> list[list[int]]:
    """Return the labels of each task from `task_classes`, however a YAML gives it.

    Parameters
    ----------
    rows, classes
        As a data set's `load` returns them.
    task_classes
        The classes of each task, by label or by name; or a function such as `shuffled` that returns them, given the
        sorted labels of the classes that have clips. Where the rows have a `task`, it goes before a function.
    before
        Tasks that earlier runs have drawn, as the names of each task's classes. The longest whose classes all have
        clips goes before a function, too, and the classes that it lacks are one task more.

    Raises
    ------
    InputError
        A class is unknown or named twice, or a task is empty.
    """
    if callable(task_classes):
        there = set(rows["class_name"].unique())
        labels = [label for label, name in enumerate(classes) if name in there]
        known = max((tasks for tasks in before if there.issuperset(_names(tasks))), key=len, default=[])
        if "task" in rows:
            task_classes = _tasks_of_rows(rows, classes)
        elif known:
            joined = [label for label in labels if classes[label] not in _names(known)]
            task_classes = [*known, joined] if joined else known
        else:
            task_classes = task_classes(labels)
    task_of = _task_of_label(classes, task_classes)
    return [[label for label, place in task_of.items() if place == task] for task in range(len(task_classes))]


def assign_tasks(rows: pd.DataFrame, classes: Sequence[str], task_classes: Sequence | Callable) -> pd.DataFrame:
    """Give every clip its `label` (place in `classes`) and `task`, and leave out the classes that no task names.

    Parameters and errors are those of `resolve_tasks`.
    """
    tasks = resolve_tasks(rows, classes, task_classes)
    task_of = {label: task for task, labels in enumerate(tasks) for label in labels}
    labels = rows["class_name"].map({name: i for i, name in enumerate(classes)})
    rows = rows.assign(label=labels, task=labels.map(task_of))
    return rows[rows["task"].notna()].astype({"label": int, "task": int}).reset_index(drop=True)


def keep_numbers(classes: Sequence[str], known: Iterable[Mapping[str, int]]) -> list[str]:
    """Order classes so that each keeps the number (its place) that it had; those without one fill the other places.

    So a class that joins a data set, such as a new folder, moves no label of a run.

    Parameters
    ----------
    classes
        In the data set's order.
    known
        Name -> number, by several records. The first counts of whose classes none is gone; without one, the order stays
        as it is.
    """
    for numbers in known:
        if numbers and numbers.keys() <= set(classes) and max(numbers.values()) < len(classes):
            at, others = {k: name for name, k in numbers.items()}, (name for name in classes if name not in numbers)
            return [at[place] if place in at else next(others) for place in range(len(classes))]
    return list(classes)


def lost_tasks(before: Sequence[Sequence], now: Sequence[Sequence]) -> str:
    """Say how tasks differ from those of before with more of them at the end; "" if they don't.

    Classes are labels or names, the same in both.
    """
    for task, members in enumerate(map(list, before)):
        if task >= len(now):
            return f"task {task}, {members}, is gone"
        if members != list(now[task]):
            moved = f"task {task} was {members} and is {list(now[task])} now"
            return f"{moved}; tasks can be added at the end alone"
    return ""


def _names(tasks):
    return {name for names in tasks for name in names}


def _tasks_of_rows(rows, classes):
    """List the labels of each task that the rows have, from 0 to the last, in order."""
    label_of = {name: label for label, name in enumerate(classes)}
    tasks = [[] for _ in range(rows["task"].max() + 1)]
    for task, name in rows[["task", "class_name"]].drop_duplicates().itertuples(index=False):
        tasks[task].append(label_of[name])
    for task, labels in enumerate(tasks):
        if not labels:
            raise InputError(f"No clip of task {task} can be used: name the tasks in task_classes, without that one.")
    return [sorted(labels) for labels in tasks]


def _task_of_label(classes, task_classes):
    """Map each label to its task; refuse an unknown class and a class with two tasks."""
    task_of = {}
    if not isinstance(task_classes, Sequence) or isinstance(task_classes, str) or not task_classes:
        raise InputError(f"task_classes is {task_classes!r}: give one tuple of classes per task: [[0, 1], [2, 3]].")
    for task, members in enumerate(task_classes):
        if not isinstance(members, Sequence) or isinstance(members, str) or not members:
            raise InputError(
                f"task_classes: task {task} is {members!r}; give the classes of each task, such as [[0, 1], [2, 3]]."
            )
        for member in members:
            label = _label(member, classes)
            if label in task_of:
                where = f"tasks {task_of[label]} and {task}" if task_of[label] != task else f"task {task} twice"
                raise InputError(f"task_classes names class {member!r} in {where}: a class has one task.")
            task_of[label] = task
    return task_of


def _label(member, classes):
    if isinstance(member, str) and member in classes:
        return classes.index(member)
    if isinstance(member, int) and not isinstance(member, bool) and 0 <= member < len(classes):
        return member
    raise InputError(
        f"task_classes: unknown class {member!r}; the classes are "
        f"{', '.join(f'{i} {c}' for i, c in list(enumerate(classes))[:50])}{' ...' if len(classes) > 50 else ''}."
    )
