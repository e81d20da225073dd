"""The task as its Brain sees it, and the modules that one task hands to the next."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from models.methods.base import Method
from utils.strategies.base import Strategy
from utils.training.best_epoch import BestEpoch
from utils.training.schedulers import WarmupCosineScheduler

FRONT_END = ("compute_features", "augment", "mean_var_norm")


def handed_on(modules: Mapping[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
    """Select the modules that are saved after a task and that the next task starts from.

    These are all modules that have a state, except for parts of the front end that aren't trained.
    """
    return {
        name: module
        for name, module in modules.items()
        if module.state_dict() and (name not in FRONT_END or any(p.requires_grad for p in module.parameters()))
    }


@dataclass
class TaskContext:
    """A task, as its Brain sees it.

    Attributes
    ----------
    index
        The task's number, from 0.
    folder, previous_folder
        The checkpoint folders of this task and of the one before. For task 0 `previous_folder` is "", or what the run
        starts from.
    rows
        The clips of an epoch, one row each: `clip` (number in the store), `label`, ...
    store
        `datasets.store.AudioStore` or `datasets.store.LiveAudio`.
    method
        None where no self-supervised loss is used.
    seed
        Of the experiment.
    views
        Rows -> a data set of their training views, see `datasets.batches.ViewDataset`.
    schedule
        Step from 0 -> learning rate.
    on_step
        Called after each step with (task, epoch, loss tensor).
    on_epoch
        Called after each epoch with a dict of figures.
    best
        Keeps the weights of the best epoch, which become the task's; None where no epoch is validated.
    save_costs
        Called after each epoch; see `utils.run.costs.training_costs`.
    losses
        Loss name -> (sum, count) over the finite losses of the epoch so far.
    seen_labels
        Labels of the earlier tasks' clips, in order.
    """

    index: int
    folder: str
    previous_folder: str
    rows: pd.DataFrame
    store: Sequence
    method: Method | None
    strategy: Strategy
    epochs: int
    steps_per_epoch: int
    seed: int
    views: Callable
    schedule: WarmupCosineScheduler
    counter: EpochCounter
    on_step: Callable
    on_epoch: Callable
    best: BestEpoch | None = None
    save_costs: Callable = lambda: None
    losses: dict = field(default_factory=dict)
    seen_labels: Sequence[int] = ()
