"""CaSSLe's distillation of h by mean squared error, on the current clips or on the memory's.

The form with a longer head, made anew for each task, that was published with "Learning Representations for New Sound
Classes With Continual Self-Supervised Learning" (Wang et al., IEEE SPL 2022, arXiv 2205.07390). The idea of
a head that maps the present to the past is CaSSLe's (Fini et al., CVPR 2022, arXiv 2112.04215, section 4).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=cassle_mse --experiment_name=cassle_mse
"""

import torch.nn.functional as F
from torch import nn

from models.heads import Predictor, Projector
from utils.strategies.teacher import HeadDistillation, fresh, views_of


class CaSSLeMSE(HeadDistillation):
    """Distil h: a head on h, new for each task, predicts the previous encoder's h (mean squared error).

    Parameters
    ----------
    emb_dim : int
        D.
    seed : int
        With the task it decides the head's first weights.
    proj_norm_type : str
        Of the head, see `models.norms.NORMS`.
    distil_on : str
        "current": the clips of the current batch; "memory": those of the memory batch alone.
    strategy_weight : float
    """

    def __init__(self, emb_dim, seed, proj_norm_type="bn", distil_on="current", strategy_weight=1.0):
        def build():
            return nn.Sequential(Projector(emb_dim, proj_norm_type), Predictor(emb_dim, proj_norm_type))

        super().__init__("cassle_mse", build, seed, strategy_weight)
        self.uses_memory = distil_on == "memory"

    def before_task(self, brain):
        super().before_task(brain)
        head = fresh(self.build, self.seed, brain.task.index)
        brain.modules["cassle_mse_head"].load_state_dict(head.state_dict())

    def views(self, out):
        return views_of(out["memory"] if self.uses_memory else out)

    def compare(self, prediction, target):
        return F.mse_loss(prediction.float(), target.float())
