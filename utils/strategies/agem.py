"""A-GEM: don't step against the memory's gradient (Chaudhry et al., ICLR 2019, arXiv 1812.00420).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=agem --replay_num_keep=20 --experiment_name=agem

A step costs a forward and a backward pass over the memory batch too. The column agem_projected of train_log.csv is the
share of an epoch's steps that were projected.
"""

import torch
from torch import nn

from utils.run.processes import average
from utils.strategies.base import Strategy
from utils.strategies.weights import all_finite, own_gradients


def project(gradients, reference):
    """Remove from a gradient what opposes the reference: g - (g.r / r.r) r where g.r < 0, else g (equation 11).

    Parameters
    ----------
    gradients, reference : list of torch.Tensor
        One vector each, in parts of equal shapes.

    Returns
    -------
    tuple of (list of torch.Tensor, torch.Tensor)
        The gradient, and whether it was projected, a scalar bool. Where r.r is 0, there is nothing to project on.
    """
    pairs = list(zip(gradients, reference, strict=True))
    along, square = sum((g * r).sum() for g, r in pairs), sum((r * r).sum() for r in reference)
    projected = (along < 0) & (square > 0)
    share = torch.where(projected, along / square, 0.0)
    return [g - share * r for g, r in pairs], projected


class AGEMState(nn.Module):
    """Counts the epoch's steps, and those of them that were projected."""

    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))


class AGEM(Strategy):
    """Project the gradient where it opposes that of the memory batch, by the trainer's own loss (section 4).

    It is one vector over all of the trained weights, of all optimizers, and the reference is the gradient of the joint
    memory batch of all processes. Where a step accumulates batches, the reference is the mean over their memories.
    """

    uses_memory = True

    def __init__(self):
        super().__init__()
        self.state, self.reference = AGEMState(), None
        self.modules = {"agem_state": self.state}

    def before_task(self, brain):
        self.reference = None
        self.state.counts.zero_()

    def losses(self, brain, losses, weights, out, batch):
        if "memory" in out:
            parameters = _stepped(brain)
            new = own_gradients(brain, brain.memory_loss(out, batch), parameters)
            old = self.reference or [0.0] * len(new)
            self.reference = [r + g / brain.grad_accumulation_factor for r, g in zip(old, new, strict=True)]
        return losses, weights

    def gradients(self, brain):
        if self.reference is None:
            return
        parameters, reference, self.reference = _stepped(brain), self.reference, None
        average(reference)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        gradients, projected = project(gradients, reference)
        self.state.counts += torch.stack([torch.ones_like(projected), projected])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient)
        # An infinite reference makes the gradient NaN, for which a step is skipped; but the scaler of fp16 has looked
        # for infinities before.
        if brain.scaler.is_enabled() and not all_finite(reference):
            brain.steps_skipped += 1
            for parameter in parameters:
                parameter.grad = None

    def figures(self, brain):
        steps, projected = self.state.counts.tolist()
        self.state.counts.zero_()
        self.reference = None  # of batches after the epoch's last step, whose gradient is thrown away too
        return {"agem_projected": projected / steps} if steps else {}


def _stepped(brain):
    """List the weights of all optimizers."""
    return [p for o in brain.optimizers_dict.values() for p in o.param_groups[0]["params"] if p.requires_grad]
