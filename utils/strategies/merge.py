"""Average the weights with those of the previous task (arXiv 2501.05559; 2211.03186).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=merge --merge_beta=0.5 --experiment_name=merge

Nothing is added to a step; after each task, the forward passes of one epoch estimate batch norm's statistics anew.
"""

import torch
from torch import nn

from utils.io.errors import InputError
from utils.strategies.base import Strategy
from utils.strategies.passes import estimate_batch_norm
from utils.strategies.previous import previous_modules
from utils.strategies.weights import trained_weights


def merged(weight, previous, beta):
    """Return (1 - beta) * weight + beta * previous, of tensors of one shape."""
    return (1 - beta) * weight + beta * previous


class MergeState(nn.Module):
    """Counts the optimizer steps since the last merge."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class Merge(Strategy):
    """After each task but the first, the weights become (1 - merge_beta) theta + merge_beta theta'.

    theta' are the previous task's weights, as saved. What is merged is all that is trained: encoder and heads, without
    heads of other strategies. What isn't trained, such as a momentum encoder or a count, is left alone. With averaged
    weights, activations differ, so batch norm's running statistics are estimated anew, over the task's clips.

    Parameters
    ----------
    merge_beta : float
        Share of the previous task's weights, from 0 to 1.
    merge_every : int, optional
        Merge after so many optimizer steps too, all through the task.
    """

    def __init__(self, merge_beta=0.5, merge_every=None):
        super().__init__()
        self.beta, self.every, self.state = merge_beta, merge_every, MergeState()
        self.modules = {"merge_state": self.state}

    def check(self, hparams):
        if not 0 <= self.beta <= 1:
            raise InputError(f"merge_beta is {self.beta}: it must be from 0 to 1.")
        if self.every is not None and (type(self.every) is not int or self.every < 1):
            raise InputError(f"merge_every is {self.every!r}: give a whole number of steps from 1 on, or null.")
        named = hparams.get("strategy")
        if isinstance(named, list) and named[0] != "merge":
            raise InputError(f"strategy is {named}: name merge first, so that the others see the merged weights.")

    def before_task(self, brain):
        self.state.steps.zero_()
        if brain.task.previous_folder:
            trained = trained_weights(brain)
            frozen = previous_modules(brain, dict.fromkeys(name.partition(".")[0] for name in trained))
            before = dict(frozen.named_parameters())
            self.pairs = [(weight, before[name]) for name, weight in trained.items()]

    def after_step(self, brain):
        self.state.steps += 1
        if brain.task.previous_folder and self.every and int(self.state.steps) == self.every:
            self._merge()

    def after_task(self, brain):
        if not brain.task.previous_folder:
            return
        if not self.every or int(self.state.steps) > 0:  # else the last step has just been followed by a merge
            self._merge()
        estimate_batch_norm(brain)

    @torch.no_grad()
    def _merge(self):
        for weight, previous in self.pairs:
            weight.copy_(merged(weight, previous, self.beta))
        self.state.steps.zero_()
