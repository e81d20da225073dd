"""Losses. They know no model. Legend: B clips, D features, C classes."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


class _Gather(torch.autograd.Function):
    """Gather the rows of all processes, in the order of their ranks.

    Every process computes the same loss from them. DistributedDataParallel averages the gradients of the processes, and
    the sum is needed, so the backward pass multiplies by the world size.
    """

    @staticmethod
    def forward(ctx, rows):
        ctx.n_rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        begin = dist.get_rank() * ctx.n_rows
        return dist.get_world_size() * gradient[begin : begin + ctx.n_rows]


def gather(rows):
    """Gather [B, D] of this process to those of all processes, with gradient; in a single process, return it."""
    return _Gather.apply(rows.contiguous()) if dist.is_available() and dist.is_initialized() else rows


class NTXentLoss(nn.Module):
    """Normalised temperature-scaled cross entropy of SimCLR (arXiv 2002.05709, equation 1).

    Every clip's two views are each other's positive; the other 2B - 2 views of the batch are the negatives. With
    several processes the batch, and so the loss, is that of all of them.

    Parameters
    ----------
    temperature : float
        Divides the cosine similarities.
    """

    def __init__(self, temperature=0.5):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: it must be above 0.")
        self.temperature = temperature

    def forward(self, z1, z2):
        """Return the mean loss over the 2B views, a scalar in at least single precision.

        Parameters
        ----------
        z1, z2 : torch.Tensor
            [B, D], row i of both from the same clip.
        """
        z1, z2 = gather(z1.float()), gather(z2.float())
        z = F.normalize(torch.cat([z1, z2]), dim=1)  # [2B, D]
        similarity = z @ z.T / self.temperature  # [2B, 2B]
        similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
        positive = torch.arange(len(z), device=z.device).roll(len(z1))  # row i's other view
        return F.cross_entropy(similarity, positive)


class NegativeCosine(nn.Module):
    """Negative cosine similarity (SimSiam, arXiv 2011.10566, equation 1 with the stop-gradient of equation 3)."""

    def forward(self, prediction, target):
        """Return the mean over the batch of [B, D] against [B, D], a scalar; the target gets no gradient."""
        return -F.cosine_similarity(prediction.float(), target.detach().float(), dim=1).mean()


class SoftCrossEntropy(nn.Module):
    """Cross entropy with label probabilities, as mixup makes them (arXiv 1710.09412, section 2)."""

    def forward(self, logits, label_probs):
        """Return the mean over the batch, a scalar, of logits [B, C] against probabilities [B, C]."""
        return F.cross_entropy(logits.float(), label_probs.float())
