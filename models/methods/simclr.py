"""SimCLR (Chen et al., ICML 2020, arXiv 2002.05709), section 2.1.

    python supclr_train.py hparams/demo/supclr_train.yaml --ssl_method=simclr --experiment_name=simclr
"""

from models.losses import NTXentLoss
from models.methods.base import Method


class SimCLR(Method):
    """Two views of a clip attract, and repel the batch's other views: NT-Xent (arXiv 2002.05709).

    It compares predictor(projector(h)), the choice of arXiv 2205.07390, section II.

    Parameters
    ----------
    projector, predictor : torch.nn.Module
        [B, D] -> [B, D].
    ssl_loss : callable, optional
        Two [B, D] -> scalar; by default NT-Xent.
    temperature : float
        Of the default loss.
    """

    constant_rate = ("predictor",)

    def __init__(self, projector, predictor, ssl_loss=None, temperature=0.5):
        super().__init__(projector=projector, predictor=predictor)
        self.ntxent = ssl_loss or NTXentLoss(temperature)

    def __call__(self, modules, view1, view2):
        z1 = modules["predictor"](modules["projector"](view1.h))  # [B, D]
        z2 = modules["predictor"](modules["projector"](view2.h))  # [B, D]
        return {"z1": z1, "z2": z2}

    def loss(self, out):
        return self.ntxent(out["z1"], out["z2"])

    def compare(self, prediction, target):
        return self.ntxent(prediction, target.detach())
