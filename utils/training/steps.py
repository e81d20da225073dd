"""What all Brains here share: counts of a validation, and steps whose loss or gradient is not finite."""

import logging

import speechbrain as sb
import torch

from utils.io.errors import InputError
from utils.training.checkpoints import DIVERGED

logger = logging.getLogger(__name__)

READ_EVERY = 50  # steps, on a GPU: of a diverged run so many are trained in vain


class AccuracyCount:
    """What a Brain that validates a classifier adds up over a stage: clips, and those that are right."""

    def on_stage_start(self, stage, epoch=None):
        """Count anew."""
        self.correct = self.total = self.batches = 0

    def count(self, logits, labels):
        """Add a batch, logits [B, C] and labels [B]."""
        self.correct += int((logits.argmax(1) == labels).sum())
        self.total += len(labels)
        self.batches += 1


class FiniteSteps:
    """Steps that don't wait for the device (in one process and fp32 or bf16; fp16's scaler and torchrun do), and what
    a Brain does about one whose loss or gradient is not finite: it leaves the step out, until SpeechBrain's
    `nonfinite_patience` is used up, and then stops and says where.

    A step is left out on the device, in the step. Whether it was is read each step on a CPU, where that costs nothing;
    on a GPU, which would stand still meanwhile, every `READ_EVERY` steps and at the end of an epoch.
    """

    not_finite_in_a_row = 0
    steps_left_out = 0  # of the epoch; a tensor as soon as there is a step

    def place(self):
        """The current step, in words."""
        return f"step {self.step}"

    def clips(self):
        """The clips of its batch, in words, if they are known."""
        return ""

    def on_fit_start(self):
        """Nothing is unread yet."""
        super().on_fit_start()
        self.unread = []
        self.read_every = 1 if torch.device(self.device).type == "cpu" else READ_EVERY

    def fit_batch(self, batch):
        """Train a step as SpeechBrain does, but leave the loss where it is; SpeechBrain waits for it twice.

        Returns
        -------
        torch.Tensor
            The loss, a scalar without gradient, on its device.
        """
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            self.unread.append((loss.detach(), self.place(), self.clips()))
            if len(self.unread) >= self.read_every:
                self.read_losses()
            self.scaler.scale(loss / self.grad_accumulation_factor).backward()
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return loss.detach()

    def update_average(self, loss, avg_loss):
        """SpeechBrain's for validation; of training steps there is no running average, which would have to be read."""
        return avg_loss if self.modules.training else super().update_average(loss, avg_loss)

    def read_losses(self):
        """Count losses that are not finite, as SpeechBrain does, each epoch anew; also in a row, as an epoch may be
        shorter than its patience.

        Raises
        ------
        InputError
            The patience is used up.
        """
        unread, self.unread = self.unread, []
        finite = torch.stack([loss for loss, _, _ in unread]).isfinite().tolist() if unread else []
        for good, (_, place, clips) in zip(finite, unread, strict=True):
            if good:
                self.not_finite_in_a_row = 0
                continue
            self.nonfinite_count = max(self.nonfinite_count, self.not_finite_in_a_row) + 1
            self.not_finite_in_a_row = self.nonfinite_count
            if self.nonfinite_count > self.nonfinite_patience:
                raise InputError(f"The loss is infinite or NaN at {place}{clips}: {DIVERGED}")
            logger.warning("The loss is infinite or NaN at %s%s: it is left out.", place, clips)

    def optimizers_step(self):
        """Clip the gradient and step. An optimizer whose gradient is not finite gets one of 0: nothing is learnt from
        that step. SpeechBrain's own would wait for a GPU once a tensor, this one never does."""
        left_out = False
        for optimizer in self.freeze_optimizers(self.optimizers_dict).values():
            self.scaler.unscale_(optimizer)
            weights = [weight for weight in optimizer.param_groups[0]["params"] if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            norm = torch.nn.utils.get_total_norm(gradients)
            if self.read_every > 1 or not norm < self.max_grad_norm:  # a pass over all, which a CPU can spare
                torch.nn.utils.clip_grads_with_norm_(weights, self.max_grad_norm, norm)
            finite = norm.isfinite()  # if not, it has spread
            if not self.scaler.is_enabled():  # which leaves such a step out by itself
                left_out = ~finite | left_out
                if self.read_every > 1 or not finite:
                    for gradient in gradients:
                        gradient.nan_to_num_(0.0, 0.0, 0.0)
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.steps_left_out = self.steps_left_out + left_out
        self.optimizer_step += 1

    def report_steps_left_out(self):
        """Say at the end of an epoch how many they were: the loss may be finite, and its gradient not.

        Raises
        ------
        InputError
            They are more than the patience.
        """
        self.read_losses()
        count, self.steps_left_out = int(self.steps_left_out), 0
        if count:
            said = f"{count} of the epoch's steps had an infinite or NaN gradient, counted at {self.place()}"
            if count > self.nonfinite_patience:
                raise InputError(f"{said}: {DIVERGED}")
            logger.warning("%s. They are left out.", said)
