"""PFR: projected functional regularisation (Gomez-Villa et al., CVPR workshops 2022, arXiv 2112.15022).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=pfr --experiment_name=pfr
"""

from torch import nn

from models.losses import NegativeCosine
from models.norms import make_norm
from utils.strategies.teacher import HeadDistillation


class PFR(HeadDistillation):
    """Distil h: a head on h predicts the direction of the previous encoder's h (negative cosine).

    The head maps what the encoder has become back to what it was, so the encoder itself is free to change. It is handed
    on from task to task.

    Parameters
    ----------
    emb_dim : int
        D.
    seed : int
    proj_norm_type : str
        Of the head, see `models.norms.NORMS`.
    strategy_weight : float
    """

    def __init__(self, emb_dim, seed, proj_norm_type="bn", strategy_weight=1.0):
        def build():
            return nn.Sequential(
                nn.Linear(emb_dim, emb_dim // 2),  # [B, D/2]
                make_norm(proj_norm_type, emb_dim // 2),
                nn.ReLU(inplace=True),
                nn.Linear(emb_dim // 2, emb_dim),  # [B, D]
            )

        super().__init__("pfr", build, seed, strategy_weight)
        self.compare = NegativeCosine()
