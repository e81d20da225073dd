"""Shared by all Brains: accuracy counts of a validation, and skipping of steps that are not finite."""

import logging

import speechbrain as sb
import torch

from utils.io.errors import InputError
from utils.training.checkpoints import DIVERGED

logger = logging.getLogger(__name__)


class AccuracyCount:
    """A Brain that counts clips, correctly classified clips and batches over a validation stage."""

    def on_stage_start(self, stage, epoch=None):
        """Reset the counts."""
        self.correct = self.total = self.batches = 0

    def count(self, logits: torch.Tensor, labels: torch.Tensor):
        """Add a batch: logits [B, C], labels [B]."""
        self.correct += int((logits.argmax(1) == labels).sum())
        self.total += len(labels)
        self.batches += 1


class FiniteSteps(sb.Brain):
    """A Brain that skips steps whose loss or gradient is not finite, and ends after `nonfinite_patience` of them.

    A skipped step changes neither weights nor optimizer state. Setting the gradient to zero would: momentum and weight
    decay still move the weights. In fp16 the GradScaler skips these steps itself, as it finds its scale by overflows.
    """

    not_finite_in_a_row = 0
    steps_skipped = 0  # of the epoch

    def place(self) -> str:
        """Return the current step in words."""
        return f"step {self.step}"

    def clips(self) -> str:
        """Return the clips of the current batch in words; "" if they aren't known."""
        return ""

    def check_loss_isfinite(self, loss: torch.Tensor):
        """Count losses that are not finite, per epoch as SpeechBrain does, and in a row over epochs.

        An epoch may have fewer steps than `nonfinite_patience`, so a count per epoch alone may never exceed it.

        Raises
        ------
        InputError
            More losses than `nonfinite_patience` were not finite.
        """
        if loss.isfinite():
            self.not_finite_in_a_row = 0
            return
        self.nonfinite_count = max(self.nonfinite_count, self.not_finite_in_a_row) + 1
        self.not_finite_in_a_row = self.nonfinite_count
        if self.nonfinite_count > self.nonfinite_patience:
            raise InputError(f"The loss is infinite or NaN at {self.place()}{self.clips()}: {DIVERGED}")
        logger.warning("The loss is infinite or NaN at %s%s: the step is skipped.", self.place(), self.clips())

    def change_gradients(self):
        """Change the gradients after unscaling and before clipping. A hook; does nothing here."""

    def after_step(self):
        """Run after each step that was not skipped. A hook; does nothing here."""

    def optimizers_step(self):
        """Clip gradients and step, as SpeechBrain does, unless a gradient is not finite.

        SpeechBrain steps with such gradients or, with `skip_nonfinite_grads`, drops them parameter by parameter.
        """
        optimizers = {
            name: optimizer
            for name, optimizer in self.freeze_optimizers(self.optimizers_dict).items()
            if any(p.grad is not None for p in optimizer.param_groups[0]["params"])  # GradScaler refuses those without
        }
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
        if optimizers:
            self.scaler.update()
        for optimizer in self.optimizers_dict.values():  # SpeechBrain's zero_grad skips frozen optimizers
            optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def report_steps_skipped(self):
        """Log how many of the epoch's steps were skipped for their gradient, and reset the count.

        Raises
        ------
        InputError
            More steps than `nonfinite_patience` were skipped.
        """
        count, self.steps_skipped = self.steps_skipped, 0
        if count:
            said = f"{count} of the epoch's steps had an infinite or NaN gradient, counted at {self.place()}"
            if count > self.nonfinite_patience:
                raise InputError(f"{said}: {DIVERGED}")
            logger.warning("%s. They were skipped.", said)
