"""What a self-supervised method is. It knows no Brain, no task and no YAML."""

from typing import NamedTuple

import torch

from utils.io.errors import InputError


class View(NamedTuple):
    """One augmented view of a batch.

    Attributes
    ----------
    features : torch.Tensor
        [B, T, F], log-mel, augmented and normalised: what the encoder took.
    lengths : torch.Tensor
        [B], relative to T.
    h : torch.Tensor
        [B, D], the encoder's output.
    """

    features: torch.Tensor
    lengths: torch.Tensor
    h: torch.Tensor


class Method:
    """A self-supervised method: its heads, its loss and its state.

    A subclass's constructor parameters are filled with the YAML's keys of the same name, where the YAML has them.

    Attributes
    ----------
    modules : dict of str to torch.nn.Module
        Heads, and state such as a momentum encoder or a queue (in buffers). They are moved to the device, saved,
        resumed and handed on to the next task; parameters with `requires_grad` are trained.
    constant_rate : tuple of str
        Names of modules that train at the base rate, without warm-up and schedule.
    """

    constant_rate = ()

    def __init__(self, **modules):
        self.modules = modules

    def __call__(self, modules, view1, view2):
        """Run the heads on two views.

        Parameters
        ----------
        modules : mapping of str to torch.nn.Module
            The Brain's, by the names of `self.modules`: under several processes, or compiled, they are wrapped.
        view1, view2 : View

        Returns
        -------
        dict of str to torch.Tensor
            `z1` and `z2`, [B, ...], what the loss compares and collapse is measured on, and what else `loss` needs.
        """
        raise NotImplementedError

    def loss(self, out):
        """Return the loss of what a call returned, a scalar."""
        raise NotImplementedError

    def compare(self, prediction, target):
        """Return the loss of predictions [B, ...] against fixed targets, a scalar; for distillation."""
        raise NotImplementedError

    def begin(self, modules, afresh):
        """Fit state to weights of another run, with which the encoder begins.

        Parameters
        ----------
        modules : mapping of str to torch.nn.Module
        afresh : collection of str
            Names of the modules that have no weights of that run.
        """

    def after_batch(self, modules, out):
        """Take in what a call returned for a batch of the task's own clips, such as keys for a queue.

        Called once after each batch with a finite loss. A call itself changes no state: it is made for memory batches
        too.
        """

    def after_step(self, modules, progress):
        """Move what follows the weights, such as a momentum encoder; `progress` goes from 0 to 1 over the task."""

    def figures(self):
        """Return figures for the log, called once after each epoch's training: name -> number."""
        return {}


def head_width(ssl_dim, default):
    """Return the width of a method's heads: that of the key `ssl_dim` or, if this is None, the method's own.

    Raises
    ------
    InputError
        Neither None nor a whole number above 0.
    """
    if ssl_dim is not None and (type(ssl_dim) is not int or ssl_dim < 1):
        raise InputError(f"ssl_dim is {ssl_dim!r}: it must be null or a whole number above 0.")
    return ssl_dim or default
