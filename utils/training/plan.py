"""What each task trains on, worked out before anything is trained."""

from dataclasses import dataclass

import pandas as pd

from datasets.selection import current_and_replay, kept, parse_keep, seen
from utils.io.errors import InputError


@dataclass(frozen=True)
class TaskPlan:
    """One task.

    Attributes
    ----------
    rows : pandas.DataFrame
        Its training clips and, unless the strategy has a memory batch, the replayed ones.
    memory : pandas.DataFrame
        The clips kept of earlier tasks that memory batches are drawn from; empty without such a strategy.
    valid : pandas.DataFrame
        Clips to validate each epoch on; empty if none is.
    epochs : int
    steps : int
        Per epoch.
    """

    rows: pd.DataFrame
    memory: pd.DataFrame
    valid: pd.DataFrame
    epochs: int
    steps: int

    @property
    def total_steps(self):
        """Steps of all epochs."""
        return self.epochs * self.steps


def plan_tasks(hparams, run_opts, data, validate=False, with_memory=False):
    """Select every task's clips and count its steps, so that what can't be trained is said before anything is.

    Parameters
    ----------
    hparams : dict
        Uses `number_of_epochs`, `replay_num_keep`, `seed`, `batch_size`.
    run_opts : speechbrain.utils.run_opts.RunOptions
    data : datasets.prepare.Data
    validate : bool
        Whether each epoch is validated: on the validation clips of the current task and, with replay, of those before.
    with_memory : bool
        Whether clips kept of earlier tasks are a batch of their own, instead of being mixed into the task's.

    Returns
    -------
    list of TaskPlan

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
    for t in range(data.n_tasks):
        rows = current_and_replay(train, t, 0 if with_memory else keep, seed)
        memory = kept(train, range(t if with_memory else 0), keep, seed)
        steps = len(rows) // hparams["batch_size"]
        if steps == 0:
            raise InputError(
                f"Task {t} ({data.task_names()[t]}) has {len(rows)} training clips, less than one batch of "
                f"{hparams['batch_size']}: lower batch_size, or put more classes into a task."
            )
        valid = _validation_rows(hparams, data, t) if validate else data.rows.iloc[:0]
        if validate and valid.empty:
            raise InputError(f"Task {t} ({data.task_names()[t]}) has no validation clips to find its best epoch with.")
        plan.append(TaskPlan(rows, memory, valid, epochs, min(steps, most) if most else steps))
    return plan


def _validation_rows(hparams, data, t):
    """What a learner at task `t` may look at: earlier tasks' clips only if it keeps some of theirs to train on."""
    rows, keep, seed = data.split("valid"), hparams["replay_num_keep"], hparams["seed"]
    return current_and_replay(rows, t, 0, seed) if parse_keep(keep) == 0 else seen(rows, t, keep, seed)
