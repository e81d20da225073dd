"""Labels and tasks: which class comes when."""

from collections.abc import Sequence

import numpy as np

from datasets.table import seeded_order
from utils.io.errors import InputError


def shuffled(labels, n_tasks, seed):
    """Part classes into tasks by seed: for YAMLs, ``task_classes: !name:datasets.tasks.shuffled``.

    Parameters
    ----------
    labels : sequence of int
        The classes.
    n_tasks : int
    seed : int
        Decides the order of the classes.

    Returns
    -------
    list of list of int
        The labels of each task, in order; the tasks' sizes differ by one at most.

    Raises
    ------
    InputError
        More tasks than classes, or no whole number of them.
    """
    if isinstance(n_tasks, bool) or not isinstance(n_tasks, int) or not 1 <= n_tasks <= len(labels):
        raise InputError(f"n_tasks is {n_tasks!r}: give a whole number from 1 to {len(labels)}, the number of classes.")
    return [sorted(part.tolist()) for part in np.array_split(seeded_order(labels, seed), n_tasks)]


def resolve_tasks(rows, classes, task_classes):
    """Turn `task_classes`, however a YAML gives it, into labels.

    Parameters
    ----------
    rows : pandas.DataFrame
        As a data set's `load` returns them.
    classes : list of str
        All class names in label order.
    task_classes : sequence of sequences of int or str, or callable
        The classes of each task, by label or by name; or a function that returns them, given the sorted labels of the
        classes that have clips, such as `shuffled`.

    Returns
    -------
    list of list of int
        The labels of each task.

    Raises
    ------
    InputError
        An unknown class, one named twice, or an empty task.
    """
    if callable(task_classes):
        there = set(rows["class_name"].unique())
        task_classes = task_classes([label for label, name in enumerate(classes) if name in there])
    task_of = _task_of_label(classes, task_classes)
    return [[label for label, place in task_of.items() if place == task] for task in range(len(task_classes))]


def assign_tasks(rows, classes, task_classes):
    """Give every clip its label and task, and leave out the classes that no task names.

    Parameters
    ----------
    rows : pandas.DataFrame
        As a data set's `load` returns them.
    classes : list of str
        All class names in label order.
    task_classes : sequence of sequences of int or str, or callable
        See `resolve_tasks`.

    Returns
    -------
    pandas.DataFrame
        The rows of the named classes with two more columns, `label` (place in `classes`) and `task`.

    Raises
    ------
    InputError
        As `resolve_tasks`.
    """
    tasks = resolve_tasks(rows, classes, task_classes)
    task_of = {label: task for task, labels in enumerate(tasks) for label in labels}
    labels = rows["class_name"].map({name: i for i, name in enumerate(classes)})
    rows = rows.assign(label=labels, task=labels.map(task_of))
    return rows[rows["task"].notna()].astype({"label": int, "task": int}).reset_index(drop=True)


def _task_of_label(classes, task_classes):
    """Turn the tasks' classes into a dict from label to task, refusing what is not one task a class."""
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
