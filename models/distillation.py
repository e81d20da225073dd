"""Losses between a network and an earlier state of it, or a memory. They know no model.

Legend: B clips of the current batch, M of the memory, V views, D features, C classes. Under several processes a
contrastive loss is that of the joint batch, as in `models.losses`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.losses import gather


def _rows(views):
    """Gather and normalise the views' rows, V of [B, D] -> [V * B, D], a view's rows together."""
    return F.normalize(torch.cat([gather(view.float()) for view in views]), dim=1)


def _similarity(a, b, temperature):
    """Return the similarities of all rows, divided by the temperature, in single precision also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T / temperature


class TeacherNTXent(nn.Module):
    """InfoNCE between predictions and a teacher's outputs, in both directions.

    A prediction's positive is the teacher's output of the same view; its negatives are the teacher's outputs of the
    batch's other clips. In the other direction the predictions of the other clips are a target's negatives. The clip's
    other view is neither: another view of the same clip is no negative in NT-Xent either.

    It is the distillation of Osiris-D (arXiv 2404.19132, L_past) and that of CaSSLe for contrastive methods (arXiv
    2112.04215, section 4). The code published with CaSSLe counts the clip's other view among the negatives.

    Parameters
    ----------
    temperature : float
        Divides the cosine similarities.
    """

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def forward(self, predictions, targets):
        """Return the mean over all rows and both directions, a scalar.

        Parameters
        ----------
        predictions, targets : sequence of torch.Tensor
            V of [B, D], in the same order of views and clips.
        """
        p, t = _rows(predictions), _rows(targets)  # [V * B, D]
        n, own = len(p), torch.arange(len(p), device=p.device)
        clip = own % (n // len(predictions))  # [V * B]
        other_view = (clip[:, None] == clip) & (own[:, None] != own)
        similarity = _similarity(p, t, self.temperature).masked_fill(other_view, float("-inf"))  # [V * B, V * B]
        return 0.5 * (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own))


class CrossTaskNTXent(nn.Module):
    """Tell the current task's clips from those of the memory (L_cross of Osiris, arXiv 2404.19132).

    As in NT-Xent, a clip's two views are each other's positive. The negatives of a current view are the memory's views
    only, and those of a memory's view are the current ones only, so clips of the same side don't repel each other.

    Parameters
    ----------
    temperature : float
        Divides the cosine similarities.
    """

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def forward(self, current, memory):
        """Return the mean of both sides' mean losses, a scalar; `current` is two views [B, D], `memory` two [M, D]."""
        z, u = _rows(current), _rows(memory)  # [2B, D], [2M, D]
        between = _similarity(z, u, self.temperature)  # [2B, 2M]
        return 0.5 * (self._side(z, between) + self._side(u, between.T))

    def _side(self, rows, negatives):
        positives = (rows * rows.roll(len(rows) // 2, 0)).sum(dim=1, keepdim=True)  # with the other view
        logits = torch.cat([positives / self.temperature, negatives], dim=1)
        return F.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.long, device=rows.device))


class SoftenedKL(nn.Module):
    """Kullback-Leibler divergence of softened class probabilities (arXiv 1606.09282, equations 2 to 4).

    The paper's loss is the cross entropy, which differs by the teacher's entropy, a constant. It is not multiplied by
    the squared temperature, as it isn't there.

    Parameters
    ----------
    temperature : float
        Divides the logits.
    """

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def forward(self, logits, target_logits):
        """Return the mean over the batch of KL(target || output), a scalar, of logits [B, C]."""
        output = F.log_softmax(logits.float() / self.temperature, dim=1)
        target = F.log_softmax(target_logits.detach().float() / self.temperature, dim=1)
        return F.kl_div(output, target, reduction="batchmean", log_target=True)
