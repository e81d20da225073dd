"""CaSSLe: the method's own loss as distillation (Fini et al., CVPR 2022, arXiv 2112.04215, section 4).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=cassle --experiment_name=cassle
"""

import copy

import torch
from torch import nn

from models.distillation import TeacherNTXent
from models.methods import METHODS
from models.methods.base import View
from models.norms import make_norm
from utils.io.errors import InputError
from utils.strategies.teacher import Distillation, fresh, views_of

HIDDEN = 2048  # of the head
CONTRASTIVE = ("simclr", "moco")  # methods, by their names in METHODS, distilled by InfoNCE
WEIGHTS = {"vicreg": 25.0}  # default weights other than 1


def width_of_z(method, modules, emb_dim, n_mels):
    """Return D', by a call of the method on silence, of which no module and no state of the method is changed."""
    view = View(torch.zeros(2, 128, n_mels), torch.ones(2), torch.zeros(2, emb_dim))
    parts = [part for module in method.modules.values() for part in module.modules()]
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        with torch.no_grad():
            return copy.copy(method)({**modules, **method.modules}, view, view)["z1"].shape[1]
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


class CaSSLe(Distillation):
    """Distil z by the method's own loss: a head on z predicts the previous task's z of the same view.

    The loss is the mean over both views of `method.compare(g(z), z')`. For contrastive methods it is
    InfoNCE with the negatives of the batch: z' of the other clips and, in the other direction, g(z) of the other clips.
    The head g is handed on from task to task.

    Parameters
    ----------
    method : models.methods.base.Method or None
        None where no self-supervised loss is trained.
    modules : dict of str to torch.nn.Module
        The YAML's, on which the method runs.
    emb_dim, n_mels, seed : int
    proj_norm_type : str
        Of the head, see `models.norms.NORMS`.
    cassle_temperature : float
        Of InfoNCE.
    strategy_weight : float, optional
        By default 25 for vicreg, else 1.
    """

    adds = ("cassle",)

    def __init__(self, modules, emb_dim, n_mels, seed, method=None, proj_norm_type="bn", cassle_temperature=0.2,
                 strategy_weight=None):  # fmt: skip
        name = next((name for name, kind in METHODS.items() if type(method) is kind), None)
        super().__init__(WEIGHTS.get(name, 1.0) if strategy_weight is None else strategy_weight)
        self.method = method
        if method is None:
            return
        self.infonce = TeacherNTXent(cassle_temperature) if name in CONTRASTIVE else None
        width = width_of_z(method, modules, emb_dim, n_mels)  # D'

        def build():
            return nn.Sequential(
                nn.Linear(width, HIDDEN),  # [B, 2048]
                make_norm(proj_norm_type, HIDDEN),
                nn.ReLU(inplace=True),
                nn.Linear(HIDDEN, width),  # [B, D']
            )

        self.modules = {"cassle_head": fresh(build, seed)}

    def check(self, hparams):
        if self.method is None:
            raise InputError("strategy cassle distils what a self-supervised method compares, and none is trained: "
                             "choose cassle_mse or pfr, or set ssl_weight above 0 in supclr_train.py.")  # fmt: skip

    def taught_by(self, brain):
        return ("embedding_model", *self.method.modules)

    def distil(self, brain, out):
        head, targets = brain.modules["cassle_head"], self.taught_z(out)
        predictions = [head(out["z1"]), head(out["z2"])]  # [B, D']
        if self.infonce is not None:
            return {"cassle": self.infonce(predictions, targets)}
        compared = [self.method.compare(*pair) for pair in zip(predictions, targets, strict=True)]
        return {"cassle": sum(compared) / 2}

    @torch.no_grad()
    def taught_z(self, out):
        """Run the teacher's encoder and heads on both views; return its z1 and z2, [B, D']."""
        views = [View(view.features, view.lengths, self.taught_h(view)) for view in views_of(out)]
        made = copy.copy(self.method)(self.teacher, *views)  # a copy: whatever a call notes belongs to the live heads
        return [made["z1"], made["z2"]]
