"""The part of a training that can be stopped and resumed: when it saves, and what ends it."""

from time import monotonic

import yaml
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from speechbrain.utils.distributed import ddp_broadcast

from utils.run.processes import world_size
from utils.run.signals import Stopped, stop_signals
from utils.training.collapse import Spread
from utils.training.context import handed_on
from utils.training.steps import FiniteSteps


def _seconds_to_save(modules):
    """Estimate the time of a checkpoint before one was timed: weights and momentum at 200 MB a second."""
    return sum(2 * weight.numel() * weight.element_size() for weight in modules.parameters()) / 2e8


@register_checkpoint_hooks
class SavedTraining(FiniteSteps):
    """Saves a task's training at the end of an epoch, as often as `ckpt_overhead` allows, within an epoch if asked to,
    and at its end. A signal ends the run once its step is saved.

    Parameters
    ----------
    task : utils.training.context.TaskContext
    **kwargs
        As for `speechbrain.Brain`.
    """

    def __init__(self, task, **kwargs):
        super().__init__(**kwargs)
        self.task, self.figures, self.stopping = task, {}, 0
        self.spread, self.has_collapsed = Spread(), False
        self.handed_on = tuple(handed_on(self.modules))
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("spread", self.spread, optional_load=True)  # older ones lack it
        self.last_save, self.save_seconds = monotonic(), _seconds_to_save(self.modules)

    def fit(self, *args, **kwargs):
        """Train as SpeechBrain does. Where a signal ends the wait for a batch, save what the last step left."""
        try:
            super().fit(*args, **kwargs)
        except Stopped:
            if not self.stopping:
                if not self.modules.training:  # in a validation, which is begun anew
                    self.step = self.task.steps_per_epoch
                self._save_intra_epoch_ckpt()
            raise

    def end_epoch(self, epoch):
        """Log the epoch; save it if it is the task's last, if saving so far took less than its share of the time, or if
        a signal asks to stop."""
        self.task.losses.clear()
        self.spread.clear()
        self.task.on_epoch(self.figures)
        self.task.save_costs()
        self.stopping = stop_signals.asked(self.device)
        if epoch == self.task.epochs:
            if self.task.best is not None:
                self.task.best.restore()
            self.task.strategy.after_task(self)
            self._save_finished()
        elif self.stopping or ddp_broadcast(
            monotonic() - self.last_save >= self.save_seconds / self.hparams.ckpt_overhead
        ):
            begun = monotonic()
            self.checkpointer.save_and_keep_only(meta={"epoch": epoch}, num_to_keep=1)
            self.last_save = monotonic()
            self.save_seconds = self.last_save - begun
        self._stop_if_asked()

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """Also where a signal asks to stop; SpeechBrain looks here after each step."""
        self.stopping = stop_signals.asked(self.device)
        return self.stopping or super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    def _save_intra_epoch_ckpt(self):
        """Save as SpeechBrain does, and end the run if a signal asked for that."""
        self.spread.collect()
        super()._save_intra_epoch_ckpt()
        self._stop_if_asked()

    def evaluate_batch(self, batch, stage):
        """In the middle of a validation, a signal ends the run as after the epoch's last step: it is validated anew. Of
        several processes, which may have unequally many batches, it ends the run after the validation."""
        loss = super().evaluate_batch(batch, stage)
        self.stopping = stop_signals.signum if world_size() == 1 else 0
        if self.stopping:
            self.step = self.task.steps_per_epoch
            self._save_intra_epoch_ckpt()
        return loss

    def _stop_if_asked(self):
        if self.stopping:
            raise Stopped(self.stopping)

    @mark_as_saver
    def _save(self, path):
        """Add the losses so far to what SpeechBrain saves in the middle of an epoch."""
        super()._save(path)
        with open(path, "a", encoding="utf-8") as file:
            losses = {name: [float(total), int(count)] for name, (total, count) in self.task.losses.items()}
            yaml.safe_dump({"losses": losses}, file)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        super()._recover(path, end_of_epoch)
        with open(path, encoding="utf-8") as file:
            self.task.losses.update({name: tuple(entry) for name, entry in yaml.safe_load(file)["losses"].items()})

    def _save_finished(self):
        """Keep the weights of the task, and nothing that only its training needed."""
        kept = {*self.handed_on, "counter"}
        self.checkpointer.recoverables = {k: v for k, v in self.checkpointer.recoverables.items() if k in kept}
        meta = {"epoch": self.task.epochs, "finished": True}
        self.checkpointer.save_and_keep_only(meta=meta, num_to_keep=1)
