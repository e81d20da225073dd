"""Osiris: integrating present and past (Zhang et al., CoLLAs 2024, arXiv 2404.19132).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=osiris --replay_num_keep=50 --experiment_name=osiris_r
    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=osiris --replay_num_keep=50 --osiris_target=teacher --experiment_name=osiris_d
"""

from torch import nn

from models.distillation import CrossTaskNTXent, TeacherNTXent
from models.losses import NTXentLoss
from utils.io.errors import InputError
from utils.strategies.teacher import Distillation, fresh, views_of


class Osiris(Distillation):
    """Contrast current clips with the memory's in a space of its own, and keep the past there; needs memory.

    Half of the cross-task loss (L_cross), and half of that of the past (L_past): NT-Xent on the memory batch in
    Osiris-R, or InfoNCE between the encoder and the previous task's on the current batch in Osiris-D. As published,
    both encoders' h pass the same head there, and the head gets a gradient from both. The second head, two layers
    without norm as published, is first used at task 1 and handed on. Its first weights are its own, since a method's
    head may have another shape.

    Parameters
    ----------
    emb_dim, seed : int
    method : models.methods.base.Method or None
        None where no self-supervised loss is trained.
    osiris_target : str
        "memory" for Osiris-R, "teacher" for Osiris-D.
    osiris_temperature : float
    strategy_weight : float
        Of both halves.
    """

    uses_memory = True
    memory_share = 0.75  # of the batch, as published
    adds = ("osiris_cross", "osiris_past")

    def __init__(self, emb_dim, seed, method=None, osiris_target="memory", osiris_temperature=0.1, strategy_weight=1.0):
        super().__init__(0.5 * strategy_weight)
        self.method, self.target = method, osiris_target
        self.cross, self.replay = CrossTaskNTXent(osiris_temperature), NTXentLoss(osiris_temperature)
        self.distillation = TeacherNTXent(osiris_temperature)

        def build():
            return nn.Sequential(
                nn.Linear(emb_dim, emb_dim),  # [B, D]
                nn.ReLU(inplace=True),
                nn.Linear(emb_dim, emb_dim, bias=False),  # [B, D]
            )

        self.modules = {"osiris_head": fresh(build, seed)}

    def check(self, hparams):
        if self.method is None:
            raise InputError("strategy osiris contrasts two views of a clip, and here is one: use a trainer with a "
                             "self-supervised method and, in supclr_train.py, ssl_weight above 0.")  # fmt: skip

    def taught_by(self, brain):
        return ("embedding_model",) if self.target == "teacher" else ()

    def distil(self, brain, out):
        head = brain.modules["osiris_head"]
        z, u = ([head(view.h) for view in views_of(part)] for part in (out, out["memory"]))  # two [B, D], two [M, D]
        if self.target == "memory":
            past = self.replay(*u)
        else:
            past = self.distillation(z, [head(self.taught_h(view)) for view in views_of(out)])
        return {"osiris_cross": self.cross(z, u), "osiris_past": past}
