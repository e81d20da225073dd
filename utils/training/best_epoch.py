"""Keep the weights of a task's best epoch."""

import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks

from utils.training.checkpoints import save_tensors


@register_checkpoint_hooks
class BestEpoch:
    """The weights of the epoch with the best validation accuracy; among equals, the one with the lowest loss.

    As a recoverable of a Checkpointer, a resumed training still knows the best epoch so far.
    """

    def __init__(self, modules: dict[str, torch.nn.Module]):
        self.modules = modules
        self.epoch, self.accuracy, self.loss, self.weights = 0, -1.0, float("inf"), {}

    def update(self, epoch: int, accuracy: float, loss: float):
        """Copy the weights if this epoch is better than all before it."""
        if (accuracy, -loss) > (self.accuracy, -self.loss):
            self.epoch, self.accuracy, self.loss = epoch, accuracy, loss
            self.weights = {
                name: {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
                for name, module in self.modules.items()
            }

    def restore(self):
        """Load the best epoch's weights into the modules."""
        for name, module in self.modules.items():
            module.load_state_dict(self.weights[name])

    @mark_as_saver
    def save(self, path):
        """Write epoch, accuracy, loss and weights to a file."""
        save_tensors({k: v for k, v in vars(self).items() if k != "modules"}, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read what `save` wrote."""
        del end_of_epoch
        vars(self).update(torch.load(path, map_location="cpu", weights_only=True))
