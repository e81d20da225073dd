"""What all Brains here share: counts of a validation, and what is done about a step that is not finite."""

import logging

import speechbrain as sb
import torch

from utils.io.errors import InputError
from utils.training.checkpoints import DIVERGED

logger = logging.getLogger(__name__)


class AccuracyCount:
    """Counts clips, and those classified correctly, over a validation stage."""

    def on_stage_start(self, stage, epoch=None):
        """Reset the counts."""
        self.correct = self.total = self.batches = 0

    def count(self, logits, labels):
        """Add a batch: logits [B, C], labels [B]."""
        self.correct += int((logits.argmax(1) == labels).sum())
        self.total += len(labels)
        self.batches += 1


class FiniteSteps(sb.Brain):
    """Skips a step whose loss or gradient is not finite; ends the run once `nonfinite_patience` is used up.

    A skipped step moves neither weights nor the optimizer's state (a gradient of zero would: by momentum and weight
    decay). In fp16 the GradScaler skips such steps, since overflows are how it finds its scale.
    """

    not_finite_in_a_row = 0
    steps_skipped = 0  # of the epoch

    def place(self):
        """Return the current step in words."""
        return f"step {self.step}"

    def clips(self):
        """Return the clips of the current batch in words, if they are known."""
        return ""

    def check_loss_isfinite(self, loss):
        """Count losses that are not finite, as SpeechBrain does per epoch, and also in a row: an epoch may be shorter
        than the patience.

        Raises
        ------
        InputError
            The patience is used up.
        """
        if loss.isfinite():
            self.not_finite_in_a_row = 0
            return
        self.nonfinite_count = max(self.nonfinite_count, self.not_finite_in_a_row) + 1
        self.not_finite_in_a_row = self.nonfinite_count
        if self.nonfinite_count > self.nonfinite_patience:
            raise InputError(f"The loss is infinite or NaN at {self.place()}{self.clips()}: {DIVERGED}")
        logger.warning("The loss is infinite or NaN at %s%s: it is left out.", self.place(), self.clips())

    def change_gradients(self):
        """Hook: change the gradients after unscaling and before clipping."""

    def after_step(self):
        """Hook: called after each step that was not skipped."""

    def optimizers_step(self):
        """Clip gradients and step, as SpeechBrain does, unless a gradient is not finite.

        SpeechBrain steps on such gradients, or (`skip_nonfinite_grads`) drops them parameter by parameter.
        """
        optimizers = self.freeze_optimizers(self.optimizers_dict)
        for optimizer in optimizers.values():
            self.scaler.unscale_(optimizer)
        self.change_gradients()
        norms = [
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.max_grad_norm)
            for optimizer in optimizers.values()
        ]
        if self.scaler.is_enabled() or all(norm.isfinite() for norm in norms):
            for optimizer in optimizers.values():
                self.scaler.step(optimizer)
            if optimizers:
                self.after_step()
        else:
            self.steps_skipped += 1
        self.scaler.update()
        for optimizer in self.optimizers_dict.values():  # SpeechBrain's zero_grad leaves out frozen ones
            optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def report_steps_skipped(self):
        """Log how many of the epoch's steps were skipped: the loss may be finite and its gradient not.

        Raises
        ------
        InputError
            More than the patience.
        """
        count, self.steps_skipped = self.steps_skipped, 0
        if count:
            said = f"{count} of the epoch's steps had an infinite or NaN gradient, counted at {self.place()}"
            if count > self.nonfinite_patience:
                raise InputError(f"{said}: {DIVERGED}")
            logger.warning("%s. They are left out.", said)
