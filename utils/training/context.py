"""What a Brain knows of the task that it trains, and which modules one task hands to the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd
from speechbrain.utils.epoch_loop import EpochCounter

from models.methods.base import Method
from utils.strategies.base import Strategy
from utils.training.best_epoch import BestEpoch
from utils.training.schedulers import WarmupCosineScheduler

FRONT_END = ("compute_features", "augment", "mean_var_norm")


def handed_on(modules):
    """The modules that are saved after a task and that the next one starts from: all with a state, but for the parts of
    the front end that aren't trained."""
    return {
        name: module
        for name, module in modules.items()
        if module.state_dict() and (name not in FRONT_END or any(p.requires_grad for p in module.parameters()))
    }


@dataclass
class TaskContext:
    """What a Brain has to know of the task that it trains.

    Attributes
    ----------
    index : int
        The task's number, from 0.
    folder, previous_folder : str
        Where the checkpoints of this task and of the one before go; `previous_folder` is "" for task 0.
    rows : pandas.DataFrame
        The clips of an epoch, one row each: `clip` (number in the store), `label`, ...
    store : datasets.store.AudioStore or datasets.store.LiveAudio
    method : models.methods.base.Method, optional
        None where no self-supervised loss is used.
    strategy : utils.strategies.base.Strategy
    epochs, steps_per_epoch : int
    seed : int
        The experiment's.
    schedule : callable
        Step from 0 -> learning rate.
    counter : speechbrain.utils.epoch_loop.EpochCounter
    on_step : callable
        Called after each step with (task, epoch, loss tensor).
    on_epoch : callable
        Called after each epoch with a dict of figures.
    best : utils.training.best_epoch.BestEpoch, optional
        Where each epoch is validated: keeps the best one's weights, which become the task's.
    save_costs : callable
        Called after each epoch, see `utils.run.costs.training_costs`.
    losses : dict
        Sum and count of each finite loss of the epoch so far.
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
    schedule: WarmupCosineScheduler
    counter: EpochCounter
    on_step: Callable
    on_epoch: Callable
    best: BestEpoch | None = None
    save_costs: Callable = lambda: None
    losses: dict = field(default_factory=dict)
