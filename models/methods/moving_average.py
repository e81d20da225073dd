"""The target network of BYOL and MoCo: an encoder and a projector that follow the trained ones."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from utils.io.errors import InputError


class MovingAverage(nn.Module):
    """Copies of an encoder and a projector, exponential moving averages of what is trained.

    Weights alone are averaged. The copies stay in train mode, as in both papers: a batch norm normalises by the batch
    at hand and keeps running statistics of its own, and dropout draws its own. Nothing here gets a gradient.

    Parameters
    ----------
    encoder, projector : torch.nn.Module
        What to copy.
    momentum : float
        Share of itself that the average keeps in a step, from 0 to 1.

    Raises
    ------
    InputError
        A momentum out of range.
    """

    def __init__(self, encoder, projector, momentum):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise InputError(f"target_momentum is {momentum}: it must be from 0 to 1.")
        self.encoder, self.projector = copy.deepcopy(encoder), copy.deepcopy(projector)
        self.requires_grad_(False)
        self.register_buffer("momentum", torch.tensor(float(momentum)))  # of the last step

    @torch.no_grad()
    def forward(self, view):
        """Embed and project a view (see `models.methods.base.View`), [B, P]."""
        return self.projector(self.encoder(view.features, view.lengths).squeeze(1))

    def become(self, encoder, projector):
        """Take over weights and running statistics of `encoder` and `projector`."""
        self.encoder.load_state_dict(encoder.state_dict())
        self.projector.load_state_dict(projector.state_dict())

    def follow(self, encoder, projector, momentum):
        """Move the weights towards those of `encoder` and `projector`."""
        live = [*encoder.parameters(), *projector.parameters()]
        copies = [*self.encoder.parameters(), *self.projector.parameters()]
        get_ema_multi_avg_fn(momentum)(copies, live, None)
        self.momentum.fill_(momentum)

    def figures(self):
        """Return the last step's momentum, for the log."""
        return {"momentum": round(float(self.momentum), 6)}
