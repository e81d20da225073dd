"""LwF: learning without forgetting (Li and Hoiem, ECCV 2016, arXiv 1606.09282, section 3).

    python sup_train.py hparams/us8k/sup_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=lwf --experiment_name=lwf
"""

import torch

from models.distillation import SoftenedKL
from models.losses import is_contrastive
from utils.io.errors import InputError
from utils.strategies.teacher import Distillation


class LwF(Distillation):
    """Distil the logits of the classes seen before this task (KL at a temperature); needs labels.

    The classifier has an output for each class of the stream from the beginning. The outputs of classes that nobody has
    seen, and of those that this task brings, take no part on either side. With mixup, teacher and student get the same
    blended views, and the loss uses no label, so nothing changes.

    Parameters
    ----------
    lwf_temperature : float
    strategy_weight : float
    """

    adds = ("lwf",)
    can_begin = False  # it teaches the classes seen before

    def __init__(self, lwf_temperature=2.0, strategy_weight=1.0):
        super().__init__(strategy_weight)
        self.divergence = SoftenedKL(lwf_temperature)

    def check(self, hparams):
        sup_loss = hparams.get("sup_loss") if hparams.get("sup_weight", 1.0) else None
        if sup_loss is None or is_contrastive(sup_loss):
            raise InputError("strategy lwf distils a classifier, and none is trained here: use sup_train.py, or "
                             "supclr_train.py with sup_weight above 0.")  # fmt: skip

    def taught_by(self, brain):
        # sup_projector, where there is one, stands between encoder and classifier
        return [name for name in ("embedding_model", "sup_projector", "classifier") if name in brain.modules]

    def before_task(self, brain):
        super().before_task(brain)
        self.seen = torch.tensor(brain.task.seen_labels, dtype=torch.long, device=brain.device)

    def distil(self, brain, out):
        return {"lwf": self.divergence(out["logits"][:, self.seen], self.taught_logits(out["view1"])[:, self.seen])}

    @torch.no_grad()
    def taught_logits(self, view):
        """Return the teacher's logits of a view, [B, C]."""
        x = self.taught_h(view)
        for name, module in self.teacher.items():
            x = x if name == "embedding_model" else module(x)
        return x
