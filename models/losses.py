"""Losses. They know no model. Legend: B clips, D features, C classes."""

import functools

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


def _full_precision(function):
    """Run a loss without autocast, its floating-point arguments in at least single precision.

    Correlations are sums of small differences, and similarities are divided by a small temperature: bf16, with its 8
    bits, is too coarse for both.
    """

    @functools.wraps(function)
    def run(self, *tensors):
        tensors = [
            tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
            for tensor in tensors
        ]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return function(self, *tensors)

    return run


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


class InfoNCELoss(nn.Module):
    """Each query's key among other keys, by cross entropy (MoCo, arXiv 1911.05722, equation 1).

    Queries and keys are L2-normalised; keys get no gradient.

    Parameters
    ----------
    temperature : float
        Divides the cosine similarities.
    """

    def __init__(self, temperature=0.2):
        super().__init__()
        self.temperature = temperature

    @_full_precision
    def forward(self, queries, keys, *queue):
        """Return the mean loss over the queries, a scalar.

        Parameters
        ----------
        queries, keys : torch.Tensor
            [B, D], row i of both from the same clip.
        *queue : torch.Tensor
            [K, D], normalised: the negatives. Without it, they are the other keys of all processes' batches.
        """
        queries, keys = F.normalize(queries, dim=1), F.normalize(keys.detach(), dim=1)
        if queue:
            similarity = torch.cat([(queries * keys).sum(dim=1, keepdim=True), queries @ queue[0].T], dim=1)  # [B, 1+K]
            positive = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        else:
            similarity = gather(queries) @ gather(keys).T  # [B, B]
            positive = torch.arange(len(similarity), device=queries.device)
        return F.cross_entropy(similarity / self.temperature, positive)


def _off_diagonal_squares(a, b):
    """Return the sum over i != j of the squares of a.T @ b, where a and b are [B, D], without that matrix [D, D].

    The sum over all i, j is that of the product of the two Gram matrices [B, B], element by element: for a batch of 32
    and D = 8192, 250 times fewer operations than for a matrix of 256 MiB.
    """
    return ((a @ a.T) * (b @ b.T)).sum() - (a * b).sum(dim=0).square().sum()


class BarlowTwinsLoss(nn.Module):
    """Cross-correlation of two views' features, pulled to the identity (Barlow Twins, arXiv 2103.03230, equation 1).

    With several processes the correlation is that of their joint batch.

    Parameters
    ----------
    weight : float
        The paper's lambda, of the elements off the diagonal.
    scale : float
        Multiplies the loss.
    """

    def __init__(self, weight=0.005, scale=1.0):
        super().__init__()
        self.weight, self.scale = weight, scale

    @_full_precision
    def forward(self, z1, z2):
        """Return the loss, a scalar, of [B, D] against [B, D]; row i of both from the same clip."""
        z1, z2 = (F.batch_norm(gather(z), None, None, training=True) for z in (z1, z2))  # each feature over the batch
        diagonal = (z1 * z2).mean(dim=0)  # [D]
        others = _off_diagonal_squares(z1, z2) / len(z1) ** 2
        return self.scale * ((1 - diagonal).square().sum() + self.weight * others)


class VICRegLoss(nn.Module):
    """Invariance, variance and covariance of two views' features (VICReg, arXiv 2105.04906, equations 1 to 6).

    The invariance is the mean over clips and features, as in the paper's algorithm 1, for which the weights were
    published; equation 5 has the sum over the features. With several processes all three are of the joint batch.

    Parameters
    ----------
    invariance, variance, covariance : float
        Weights of the three parts.
    """

    def __init__(self, invariance=25.0, variance=25.0, covariance=1.0):
        super().__init__()
        self.weights = (invariance, variance, covariance)

    @_full_precision
    def forward(self, z1, z2):
        """Return the loss, a scalar, of [B, D] against [B, D]; row i of both from the same clip."""
        z1, z2 = gather(z1), gather(z2)
        parts = [F.mse_loss(z1, z2), 0.0, 0.0]
        for z in (z1, z2):
            parts[1] += F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()
            centred = z - z.mean(dim=0)
            parts[2] += _off_diagonal_squares(centred, centred) / (len(z) - 1) ** 2 / z.shape[1]
        return sum(weight * part for weight, part in zip(self.weights, parts, strict=True))


class SoftCrossEntropy(nn.Module):
    """Cross entropy with label probabilities, as mixup makes them (arXiv 1710.09412, section 2)."""

    def forward(self, logits, label_probs):
        """Return the mean over the batch, a scalar, of logits [B, C] against probabilities [B, C]."""
        return F.cross_entropy(logits.float(), label_probs.float())


class SupConLoss(nn.Module):
    """Supervised contrast: all views of a clip's class are its positives (arXiv 2004.11362, equation 2).

    The batch, and so the loss, is that of all processes.

    Parameters
    ----------
    temperature : float
        Divides the cosine similarities.
    """

    contrastive = True  # it compares clips, so that a classifier stays untrained

    def __init__(self, temperature=0.1):
        super().__init__()
        self.temperature = temperature

    @_full_precision
    def forward(self, z1, z2, label_probs):
        """Return the mean loss over the 2B views, a scalar.

        Parameters
        ----------
        z1, z2 : torch.Tensor
            [B, D], row i of both from the same clip.
        label_probs : torch.Tensor
            [B, C], one-hot.
        """
        z = F.normalize(torch.cat([gather(z1), gather(z2)]), dim=1)  # [2B, D]
        labels = gather(label_probs).argmax(dim=1).repeat(2)  # [2B]
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / self.temperature).masked_fill(itself, float("-inf"))
        positive = (labels[:, None] == labels) & ~itself  # at least the other view
        log_shares = F.log_softmax(similarity, dim=1).masked_fill(~positive, 0.0)
        return -(log_shares.sum(dim=1) / positive.sum(dim=1)).mean()


# Losses with labels, by name. One that is `contrastive` takes both views' features [B, D] and label probabilities
# [B, C], others take logits [B, C] and label probabilities.
SUP_LOSSES = {
    "cross_entropy": SoftCrossEntropy,
    "supcon": SupConLoss,
}


def is_contrastive(sup_loss):
    """Tell whether a loss with labels, given as an object or by name, compares clips and so trains no classifier."""
    return getattr(SUP_LOSSES.get(sup_loss) if isinstance(sup_loss, str) else sup_loss, "contrastive", False)
