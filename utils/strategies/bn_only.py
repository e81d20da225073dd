"""Adapt batch norm's statistics alone (Mulimani and Mesaros, arXiv 2406.13386).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=bn_only --experiment_name=bn_only

After task 0 no weight changes; each task costs the forward passes of its epochs, and one epoch is enough.
"""

from utils.io.errors import InputError
from utils.strategies.frozen import NoSteps
from utils.strategies.passes import average_anew, batch_norms


class BatchNormOnly(NoSteps):
    """No gradient after task 0; batch norm's running statistics are those of all of the task's batches.

    The paper moves the old statistics by a momentum that changes; here the plain average replaces them, from the task's
    first step on, over the augmented views that training sees. The count of batches is part of batch norm's state, so a
    resumed task goes on averaging where it stopped.
    """

    def check(self, hparams):
        if not batch_norms(hparams["modules"]["embedding_model"]):
            raise InputError("strategy bn_only adapts batch norm, and the encoder has none: set emb_norm_type to bn.")

    def before_task(self, brain):
        if brain.task.index > 0:
            self.restore = average_anew(batch_norms(brain.modules))

    def after_task(self, brain):
        if brain.task.index > 0:
            self.restore()
