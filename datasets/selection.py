"""Select the clips that a training or an evaluation uses at task t, by pure functions over the table of clips.

Every draw is a function of (seed, task), so a clip that is kept for replay stays kept at all later tasks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.io.errors import InputError


def parse_keep(replay_num_keep: int | str) -> int | None:
    """Read `replay_num_keep`: "all" -> None (no limit), else a whole number from 0 on."""
    if str(replay_num_keep).strip().lower() == "all":
        return None
    if isinstance(replay_num_keep, bool) or not str(replay_num_keep).strip().isdigit():
        raise InputError(f"replay_num_keep is {replay_num_keep!r}: give a whole number from 0 on, or all.")
    return int(replay_num_keep)


def of_tasks(rows: pd.DataFrame, tasks: Iterable[int]) -> pd.DataFrame:
    """Return the rows of the given tasks, in the table's order."""
    return rows[rows["task"].isin(list(tasks))]


def kept(rows: pd.DataFrame, tasks: Iterable[int], replay_num_keep: int | str, seed: int) -> pd.DataFrame:
    """Draw `replay_num_keep` rows of each of the given tasks ("all": every row), without replacement, by (seed, task).

    Returns the rows in the order of the tasks, and of the table within a task.
    """
    limit = parse_keep(replay_num_keep)
    chosen = []
    for task in tasks:
        members = of_tasks(rows, [task])
        if limit is not None and limit < len(members):
            places = np.random.default_rng([seed, task]).choice(len(members), size=limit, replace=False)
            members = members.iloc[np.sort(places)]
        chosen.append(members)
    return pd.concat(chosen) if chosen else rows.iloc[:0]


def few_of_each_class(rows: pd.DataFrame, n: int, draw: int, seed: int) -> pd.DataFrame:
    """Draw `n` rows of each class, without replacement, by (seed, draw, class); in the table's order.

    Raises
    ------
    InputError
        A class has fewer.
    """
    places = []
    for label, members in rows.groupby("label").indices.items():
        if len(members) < n:
            name = rows["class_name"].iloc[members[0]]
            raise InputError(f"few_shot is {n}, but the class {name} has {len(members)} training clips to draw from.")
        places.append(np.random.default_rng([seed, draw, int(label)]).choice(members, size=n, replace=False))
    return rows.iloc[np.sort(np.concatenate(places))] if places else rows


def current_and_replay(rows, task, replay_num_keep, seed):
    """Return all rows of `task` and `replay_num_keep` of each earlier task: the training clips of an encoder."""
    return pd.concat([of_tasks(rows, [task]), kept(rows, range(task), replay_num_keep, seed)])


def seen(rows, task, replay_num_keep, seed):
    """Return all rows of tasks 0..task."""
    del replay_num_keep, seed
    return of_tasks(rows, range(task + 1))


def subset(rows, task, replay_num_keep, seed):
    """Return `replay_num_keep` rows of each of tasks 0..task."""
    if parse_keep(replay_num_keep) == 0:
        raise InputError("linclf_train_type=subset trains on replay_num_keep clips a task: set it above 0, or to all.")
    return kept(rows, range(task + 1), replay_num_keep, seed)


def full(rows, task, replay_num_keep, seed):
    """Return all rows of all tasks."""
    del task, replay_num_keep, seed
    return rows


@dataclass(frozen=True)
class Protocol:
    """A way of judging a saved encoder; an entry of `PROTOCOLS` makes it a value of linclf_train_type.

    `train` and `valid` select the classifier's rows: (rows, task, replay_num_keep, seed) -> rows. `test_tasks` lists
    the tasks whose accuracies fill the table's row of the encoder saved after `task`: (task, n_tasks) -> tasks.
    """

    title: str  # in tables, figures and the report
    train: Callable
    valid: Callable
    test_tasks: Callable
    balanced: bool  # draw the classes with equal probability in training
    # Whether the classifier chooses among more classes after each task: accuracies then fall without any forgetting.
    # If not, train and valid must select the same rows for every task; the report then shows forgetting and BWT.
    classes_grow: bool
    trains_on: str = ""  # the training clips in words, for the report's legend


def _seen_tasks(task, n_tasks):
    del n_tasks
    return range(task + 1)


def _all_tasks(task, n_tasks):
    del task
    return range(n_tasks)


PROTOCOLS = {
    "seen": Protocol(
        "LEP", seen, seen, _seen_tasks, balanced=False, classes_grow=True, trains_on="all clips of the tasks seen"
    ),
    "subset": Protocol(
        "SLEP", subset, seen, _seen_tasks, balanced=True, classes_grow=True, trains_on="a few of each"
    ),
    "buffer": Protocol(
        "Buffer", current_and_replay, seen, _seen_tasks, balanced=True, classes_grow=True,
        trains_on="all of the last task and a few of the others",
    ),
    "full": Protocol("Full", full, full, _all_tasks, balanced=False, classes_grow=False, trains_on="all tasks"),
}  # fmt: skip


def get_protocol(linclf_train_type: str) -> Protocol:
    """Look up a name in `PROTOCOLS`; the InputError for an unknown name lists the known names."""
    if linclf_train_type not in PROTOCOLS:
        raise InputError(f"linclf_train_type is {linclf_train_type!r}: choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[linclf_train_type]
