"""Barlow Twins (Zbontar et al., ICML 2021, arXiv 2103.03230), section 2.1.

    python supclr_train.py hparams/demo/supclr_train.yaml --ssl_method=barlow_twins --experiment_name=barlow_twins
"""

from models.heads import MLP
from models.losses import BarlowTwinsLoss
from models.methods.base import Method, head_width


class BarlowTwins(Method):
    """Each feature correlates with itself in the other view, and with no other (arXiv 2103.03230).

    Equation 1.

    Parameters
    ----------
    emb_dim : int
        D.
    ssl_dim : int, optional
        Features of the projector's two layers; if None, 8192, and 1024 for encoders with D below 1024.
    proj_norm_type : str
        Norm of the projector.
    barlow_lambda : float
        Weight of the correlations between different features.
    barlow_scale : float
        Multiplies the loss.
    """

    def __init__(self, emb_dim, ssl_dim=None, proj_norm_type="bn", barlow_lambda=0.005, barlow_scale=1.0):
        width = head_width(ssl_dim, 8192 if emb_dim >= 1024 else 1024)
        super().__init__(projector=MLP(emb_dim, width, width, norm_type=proj_norm_type))
        self.correlation = BarlowTwinsLoss(barlow_lambda, barlow_scale)

    def __call__(self, modules, view1, view2):
        return {"z1": modules["projector"](view1.h), "z2": modules["projector"](view2.h)}  # [B, P]

    def loss(self, out):
        return self.correlation(out["z1"], out["z2"])

    def compare(self, prediction, target):
        return self.correlation(prediction, target.detach())
