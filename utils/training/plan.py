"""Select each task's clips and count its steps, before any training."""

import textwrap
from dataclasses import dataclass

import pandas as pd
from speechbrain.utils.run_opts import RunOptions

from datasets.prepare import Data
from datasets.selection import current_and_replay, kept, parse_keep, seen
from utils.io.errors import InputError


@dataclass(frozen=True)
class TaskPlan:
    """The clips and steps of one task.

    Attributes
    ----------
    rows
        The task's training clips and, unless the strategy uses a memory batch, the replayed ones.
    memory
        The clips kept of earlier tasks from which memory batches are drawn; empty if the strategy uses none.
    valid
        Clips to validate each epoch on; empty if epochs aren't validated.
    steps
        Per epoch.
    """

    rows: pd.DataFrame
    memory: pd.DataFrame
    valid: pd.DataFrame
    epochs: int
    steps: int

    @property
    def total_steps(self) -> int:
        """Return the steps of all epochs."""
        return self.epochs * self.steps


def plan_tasks(
    hparams: dict, run_opts: RunOptions, data: Data, validate: bool = False, with_memory: bool = False
) -> list[TaskPlan]:
    """Select every task's clips and count its steps, so that a task that can't be trained is refused at the start.

    Parameters
    ----------
    hparams
        Uses `number_of_epochs`, `replay_num_keep`, `seed`, `batch_size`.
    run_opts
        Uses `debug`, `debug_epochs`, `debug_batches`.
    data
        Table of clips and tasks.
    validate
        Validate each epoch: on the validation clips of the current task and, with replay, of the tasks before it.
    with_memory
        Put the clips kept of earlier tasks into memory batches, instead of mixing them into the task's own clips.

    Raises
    ------
    InputError
        A task has fewer clips than a batch, or none to validate on.
    """
    data.check_splits(needed=validate)
    plan = []
    epochs, most = hparams["number_of_epochs"], None
    if run_opts.debug:
        epochs = min(epochs, run_opts.debug_epochs) if run_opts.debug_epochs > 0 else epochs
        most = run_opts.debug_batches
    train, keep, seed = data.split("train"), hparams["replay_num_keep"], hparams["seed"]
    names = [textwrap.shorten(name, 60, placeholder=" ...") for name in data.task_names()]
    for t in range(data.n_tasks):
        rows = current_and_replay(train, t, 0 if with_memory else keep, seed)
        memory = kept(train, range(t if with_memory else 0), keep, seed)
        steps = len(rows) // hparams["batch_size"]
        if steps == 0:
            raise InputError(
                f"Task {t} ({names[t]}) has {len(rows)} training clips, less than one batch of "
                f"{hparams['batch_size']}: lower batch_size, or put more classes into a task."
            )
        valid = _validation_rows(hparams, data, t) if validate else data.rows.iloc[:0]
        if validate and valid.empty:
            raise InputError(f"Task {t} ({names[t]}) has no validation clips to choose its best epoch by.")
        plan.append(TaskPlan(rows, memory, valid, epochs, min(steps, most) if most else steps))
    return plan


def _validation_rows(hparams, data, t):
    """Select the validation clips of task `t`, and of earlier tasks only if some of their training clips are kept."""
    rows, keep, seed = data.split("valid"), hparams["replay_num_keep"], hparams["seed"]
    return current_and_replay(rows, t, 0, seed) if parse_keep(keep) == 0 else seen(rows, t, keep, seed)
