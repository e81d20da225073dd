"""MoCo (He et al., CVPR 2020, arXiv 1911.05722), sections 3.1 and 3.2, and v2 (arXiv 2003.04297).

    python supclr_train.py hparams/demo/supclr_train.yaml --ssl_method=moco --experiment_name=moco
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.losses import InfoNCELoss, gather
from models.methods.base import Method
from models.methods.moving_average import MovingAverage
from utils.io.errors import InputError


class Queue(nn.Module):
    """The last keys of each of two views, in a buffer [2, K, P]; random directions until they are replaced."""

    def __init__(self, size, dim):
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(2, size, dim), dim=2))

    @torch.no_grad()
    def add(self, *keys):
        """Replace the oldest keys by [B, P] of each view from all processes, in the order of their ranks."""
        new = torch.stack([gather(F.normalize(k.float(), dim=1)) for k in keys])  # [2, B, P]
        self.keys.copy_(torch.cat([self.keys, new], dim=1)[:, -self.keys.shape[1] :])


class MoCo(Method):
    """Each view attracts a moving average's key of the other view, and repels a queue (arXiv 1911.05722).

    Equation 1, made symmetric, as both views are embedded anyway: each view has a queue of its own. Queries and keys
    are L2-normalised. A step's own keys enter the queue for the steps after it. A queue that is long for the task's
    clips holds their keys of earlier epochs, as negatives of themselves.

    Parameters
    ----------
    embedding_model : torch.nn.Module
        ([B, T, F], [B]) -> [B, 1, D].
    projector : torch.nn.Module
        [B, D] -> [B, D].
    emb_dim : int
        D.
    batch_size : int
        Clips in the joint batch of all processes.
    moco_queue : int
        K, keys of each view.
    moco_temperature : float
        Divides the cosine similarities.
    target_momentum : float
        Share of itself that the moving average keeps in a step.

    Raises
    ------
    InputError
        The queue is smaller than a batch.
    """

    def __init__(
        self,
        embedding_model,
        projector,
        emb_dim,
        batch_size,
        moco_queue=256,
        moco_temperature=0.2,
        target_momentum=0.99,
    ):
        if moco_queue < batch_size:
            raise InputError(f"moco_queue is {moco_queue}, less than a batch's keys: set it to {batch_size} or more.")
        super().__init__(
            projector=projector,
            target=MovingAverage(embedding_model, projector, target_momentum),
            queue=Queue(moco_queue, emb_dim),
        )
        self.momentum, self.info_nce = target_momentum, InfoNCELoss(moco_temperature)

    def __call__(self, modules, view1, view2):
        z1, z2 = modules["projector"](view1.h), modules["projector"](view2.h)  # [B, D]
        k1, k2 = modules["target"](view1), modules["target"](view2)  # [B, D]
        return {"z1": z1, "z2": z2, "k1": k1, "k2": k2, "older": modules["queue"].keys.clone()}  # [2, K, D]

    def loss(self, out):
        older1, older2 = out["older"]  # [K, D]
        return 0.5 * (self.info_nce(out["z1"], out["k2"], older2) + self.info_nce(out["z2"], out["k1"], older1))

    def compare(self, prediction, target):
        """Return InfoNCE, a scalar, with the other clips' targets in all processes' batches as negatives."""
        return self.info_nce(prediction, target)

    def after_batch(self, modules, out):
        modules["queue"].add(out["k1"], out["k2"])

    def begin(self, modules, afresh):
        if "target" in afresh:
            modules["target"].become(modules["embedding_model"], modules["projector"])

    def after_step(self, modules, progress):
        modules["target"].follow(modules["embedding_model"], modules["projector"], self.momentum)

    def figures(self):
        return self.modules["target"].figures()
