"""Train task 0 alone: the floor of any strategy for learning, and the ceiling for not forgetting.

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=frozen --experiment_name=frozen

Later tasks cost their forward passes, without the backward ones: the log then shows the loss of the frozen encoder on
each new task.
"""

from utils.strategies.base import Strategy
from utils.strategies.previous import previous_modules


def without_gradient(losses):
    """Return the losses, scalars by name, as new leaves: a backward pass ends there."""
    return {name: loss.detach().requires_grad_() for name, loss in losses.items()}


class NoSteps(Strategy):
    """No gradient and no step after task 0."""

    def losses(self, brain, losses, weights, out, batch):
        return (losses if brain.task.index == 0 else without_gradient(losses)), weights

    def optimizers(self, brain, optimizers):
        return optimizers if brain.task.index == 0 else {}


class FrozenEncoder(NoSteps):
    """No step after task 0: weights and running statistics stay as task 0 left them, bit for bit."""

    def before_task(self, brain):
        if brain.task.index > 0:
            names = [name for name in brain.handed_on if name not in brain.strategy.modules]
            self.live = {name: brain.modules[name] for name in names}
            self.previous = previous_modules(brain, names)

    def after_task(self, brain):
        if brain.task.index > 0:
            for name, module in self.live.items():  # forward passes in train mode have moved running statistics
                module.load_state_dict(self.previous[name].state_dict())
