"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv 1612.00796), online (arXiv 1805.06370).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=ewc --strategy_weight=10 --experiment_name=ewc

After each task an epoch more, without steps, estimates the Fisher information. The checkpoints grow by twice the size
of the trained weights; the exported encoder has none of it.
"""

import logging

import speechbrain as sb
import torch

from utils.io.errors import InputError
from utils.run.processes import average
from utils.strategies.base import Strategy
from utils.strategies.passes import task_batches, train_mode
from utils.strategies.weights import Consolidation, PerWeight, all_finite, check_at_least_0, own_gradients

logger = logging.getLogger(__name__)


def fisher_diagonal(brain, weights):
    """Return the mean square of the trainer's own loss's gradient, over the batches of one more epoch.

    The Fisher diagonal is the mean square of each clip's gradient. A contrastive loss compares clips, so it has no
    gradient per clip, and here each batch counts as one sample: squares of batch means are smaller, by up to the batch
    size. Labels are the clips' own, not drawn from the model. The pass is in train mode, as the loss is trained, and
    leaves running statistics as they were.

    Parameters
    ----------
    brain : utils.training.brain.TaskBrain
    weights : list of torch.nn.Parameter

    Returns
    -------
    list of torch.Tensor
        As `weights`; of the joint batch, so the same in all processes.
    """
    sums, count, batches = [torch.zeros_like(weight) for weight in weights], 0, 0
    buffers = list(brain.modules.buffers())
    before = [buffer.clone() for buffer in buffers]
    with train_mode(brain), torch.enable_grad():  # a validation, which may end the task, has none
        for batch in task_batches(brain, sliced=True):
            with brain.training_ctx:
                loss = brain.own_loss(brain.compute_forward(batch, sb.Stage.TRAIN), batch)
            gradients, batches = own_gradients(brain, loss, weights), batches + 1
            average(gradients)  # as the squares of the joint batch's gradient are wanted, and it is linear
            if all_finite(gradients):
                count += 1
                for square, gradient in zip(sums, gradients, strict=True):
                    square += gradient.square()
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(old)
    if count < batches:
        logger.warning("ewc: %d of %d batches had a gradient that is not finite, and are left out of the Fisher "
                       "information of task %d.", batches - count, batches, brain.task.index)  # fmt: skip
    return [square / max(count, 1) for square in sums]


class EWC(Strategy):
    """A pull to the previous task's weights, strategy_weight / 2 * sum(F (theta - theta')^2) (equation 3).

    F is the Fisher diagonal of the tasks so far, by the trainer's own losses, without any strategy's: after each task
    ewc_gamma times what it was, plus the task's own (online EWC, arXiv 1805.06370).

    Parameters
    ----------
    strategy_weight : float
    ewc_gamma : float
        From 0 (the last task alone counts) to 1 (all tasks count alike).
    """

    def __init__(self, strategy_weight=10.0, ewc_gamma=1.0):
        super().__init__()
        self.weight, self.gamma, self.state = strategy_weight, ewc_gamma, PerWeight()
        self.pull, self.modules = Consolidation(self.state), {"ewc_state": self.state}

    def check(self, hparams):
        check_at_least_0("ewc", self.weight)
        if not 0 <= self.gamma <= 1:
            raise InputError(f"ewc_gamma is {self.gamma}: it must be from 0 to 1.")

    def before_task(self, brain):
        self.pull.begin(brain)
        self.pull.share()

    def gradients(self, brain):
        self.pull.add_gradient(self.weight)

    def figures(self, brain):
        return self.pull.figures("ewc", self.weight)

    def after_task(self, brain):
        for old, new in zip(self.pull.importances, fisher_diagonal(brain, self.pull.weights), strict=True):
            old.copy_(self.gamma * old + new)
        self.pull.anchor()
        self.state.tasks += 1
