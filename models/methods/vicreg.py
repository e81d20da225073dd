"""VICReg (Bardes et al., ICLR 2022, arXiv 2105.04906), section 4.

    python supclr_train.py hparams/demo/supclr_train.yaml --ssl_method=vicreg --experiment_name=vicreg
"""

import torch.nn.functional as F

from models.heads import MLP
from models.losses import VICRegLoss
from models.methods.base import Method, head_width
from utils.io.errors import InputError


class VICReg(Method):
    """Two views agree in features that vary over the batch and don't covary (arXiv 2105.04906).

    Equation 6.

    Parameters
    ----------
    emb_dim : int
        D.
    ssl_dim : int, optional
        Features of the projector's two layers; 2048 if None.
    proj_norm_type : str
        Norm of the projector.
    vicreg_weights : sequence of float
        Weights of invariance, variance and covariance.

    Raises
    ------
    InputError
        Other than three weights of at least 0.
    """

    def __init__(self, emb_dim, ssl_dim=None, proj_norm_type="bn", vicreg_weights=(25.0, 25.0, 1.0)):
        if not _are_weights(vicreg_weights):
            raise InputError(f"vicreg_weights is {vicreg_weights}: give three of at least 0, such as [25, 25, 1].")
        width = head_width(ssl_dim, 2048)
        super().__init__(projector=MLP(emb_dim, width, width, norm_type=proj_norm_type))
        self.vicreg = VICRegLoss(*vicreg_weights)

    def __call__(self, modules, view1, view2):
        return {"z1": modules["projector"](view1.h), "z2": modules["projector"](view2.h)}  # [B, P]

    def loss(self, out):
        return self.vicreg(out["z1"], out["z2"])

    def compare(self, prediction, target):
        """Return the invariance alone, a scalar, without its weight: a fixed target already varies as it should."""
        return F.mse_loss(prediction.float(), target.detach().float())


def _are_weights(values):
    numbers = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
    return numbers and len(values) == 3 and all(0 <= value < float("inf") for value in values)
