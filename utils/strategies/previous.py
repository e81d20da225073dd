"""The previous task's modules, frozen: teachers, and weights to stay near to."""

import copy

from torch import nn

from utils.run.processes import share_weights


class Frozen(nn.ModuleDict):
    """Modules that are never trained: always in eval mode, without gradients."""

    def __init__(self, modules):
        super().__init__(modules)
        self.requires_grad_(False)
        self.train()

    def train(self, mode=True):
        """Set eval mode, whatever `mode` says: in train mode, batch norm's statistics would move."""
        return super().train(False)


def previous_modules(brain, names):
    """Copy modules as the previous task left them. For `Strategy.before_task` alone.

    There, at every start of a task, the Brain's modules have the weights of the previous task's folder, also where the
    task is then resumed from a checkpoint of its own.

    Parameters
    ----------
    brain : utils.training.brain.TaskBrain
    names : iterable of str
        Of `brain.modules`.

    Returns
    -------
    Frozen
        On the Brain's device. It belongs to no optimizer and no checkpoint.
    """
    previous = Frozen({name: copy.deepcopy(brain.modules[name]) for name in names})
    share_weights(previous)
    return previous
