"""The weights of a training's best epoch."""

import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks

from utils.training.checkpoints import save_tensors


@register_checkpoint_hooks
class BestEpoch:
    """Keep the weights of the epoch with the best validation accuracy, the one of lowest loss among equals.

    Hand it to a Checkpointer, and a resumed training knows the best epoch from before.

    Parameters
    ----------
    modules : dict of str to torch.nn.Module
        Whose weights to keep.
    """

    def __init__(self, modules):
        self.modules = modules
        self.epoch, self.accuracy, self.loss, self.weights = 0, -1.0, float("inf"), {}

    def update(self, epoch, accuracy, loss):
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
