"""BYOL (Grill et al., NeurIPS 2020, arXiv 2006.07733), section 3.

    python supclr_train.py hparams/demo/supclr_train.yaml --ssl_method=byol --experiment_name=byol
"""

import math

from models.heads import MLP
from models.losses import NegativeCosine
from models.methods.base import Method, head_width
from models.methods.moving_average import MovingAverage


class BYOL(Method):
    """Each view's prediction attracts a moving average's projection of the other view (arXiv 2006.07733).

    Equation 2, symmetric. In each step the average keeps a share of itself. This share rises by a cosine over the steps
    of a task, from `target_momentum` to 1, and the next task begins anew.

    Parameters
    ----------
    embedding_model : torch.nn.Module
        ([B, T, F], [B]) -> [B, 1, D].
    emb_dim : int
        D.
    ssl_dim : int, optional
        Hidden features of projector and predictor; 4096 if None. Both have 256 features out.
    proj_norm_type : str
        Norm of the heads.
    target_momentum : float
        The share at a task's start.
    """

    def __init__(self, embedding_model, emb_dim, ssl_dim=None, proj_norm_type="bn", target_momentum=0.99):
        hidden = head_width(ssl_dim, 4096)
        projector = MLP(emb_dim, hidden, 256, norm_type=proj_norm_type)
        super().__init__(
            projector=projector,
            predictor=MLP(256, hidden, 256, norm_type=proj_norm_type),
            target=MovingAverage(embedding_model, projector, target_momentum),
        )
        self.momentum, self.cosine = target_momentum, NegativeCosine()

    def __call__(self, modules, view1, view2):
        z1, z2 = modules["projector"](view1.h), modules["projector"](view2.h)  # [B, P]
        p1, p2 = modules["predictor"](z1), modules["predictor"](z2)  # [B, P]
        return {"z1": z1, "z2": z2, "p1": p1, "p2": p2, "t1": modules["target"](view1), "t2": modules["target"](view2)}

    def loss(self, out):
        return self.compare(out["p1"], out["t2"]) + self.compare(out["p2"], out["t1"])

    def compare(self, prediction, target):
        return 2 + 2 * self.cosine(prediction, target)

    def begin(self, modules, afresh):
        if "target" in afresh:
            modules["target"].become(modules["embedding_model"], modules["projector"])

    def after_step(self, modules, progress):
        momentum = 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        modules["target"].follow(modules["embedding_model"], modules["projector"], momentum)

    def figures(self):
        return self.modules["target"].figures()
