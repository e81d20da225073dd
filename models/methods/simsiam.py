"""SimSiam (Chen and He, CVPR 2021, arXiv 2011.10566), section 3.

    python supclr_train.py hparams/demo/supclr_train.yaml --ssl_method=simsiam --experiment_name=simsiam
"""

from models.losses import NegativeCosine
from models.methods.base import Method


class SimSiam(Method):
    """Each view's prediction attracts the other view's projection, without negatives (arXiv 2011.10566).

    The projection gets no gradient (equation 2).

    Parameters
    ----------
    projector, predictor : torch.nn.Module
        [B, D] -> [B, D].
    """

    constant_rate = ("predictor",)  # section 4.2

    def __init__(self, projector, predictor):
        super().__init__(projector=projector, predictor=predictor)
        self.cosine = NegativeCosine()

    def __call__(self, modules, view1, view2):
        z1, z2 = modules["projector"](view1.h), modules["projector"](view2.h)  # [B, D]
        p1, p2 = modules["predictor"](z1), modules["predictor"](z2)  # [B, D]
        return {"z1": z1, "z2": z2, "p1": p1, "p2": p2}

    def loss(self, out):
        return 0.5 * (self.cosine(out["p1"], out["z2"]) + self.cosine(out["p2"], out["z1"]))

    def compare(self, prediction, target):
        return self.cosine(prediction, target)
