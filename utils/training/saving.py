"""Save a task's training so that it can be stopped at any step and resumed."""

from time import monotonic

import yaml
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from speechbrain.utils.distributed import ddp_broadcast

from utils.run.processes import world_size
from utils.run.signals import Stopped, stop_signals
from utils.training.collapse import Spread
from utils.training.context import TaskContext, handed_on
from utils.training.steps import FiniteSteps


def _seconds_to_save(modules):
    """Estimate the time of the first checkpoint: weights and momentum at 200 MB/s. Later ones are timed."""
    return sum(2 * weight.numel() * weight.element_size() for weight in modules.parameters()) / 2e8


@register_checkpoint_hooks
class SavedTraining(FiniteSteps):
    """A Brain that saves its task's training.

    It saves at the end of an epoch as often as `ckpt_overhead` allows, at the end of the task, and within an epoch if
    SpeechBrain's `ckpt_interval_...` options ask for it. A signal saves the current step and ends the run.

    Parameters
    ----------
    task
        The task to train.
    **kwargs
        As for `speechbrain.Brain`.
    """

    def __init__(self, task: TaskContext, **kwargs):
        super().__init__(**kwargs)
        self.task, self.figures, self.stopping = task, {}, 0
        self.spread, self.has_collapsed = Spread(), False
        self.handed_on = tuple(handed_on(self.modules))
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("spread", self.spread, optional_load=True)  # older checkpoints lack it
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

    def end_epoch(self, epoch: int):
        """Log the epoch, and save it if it is the task's last, if a save is due, or if a signal asks to stop.

        A save is due when the last one took at most the share `ckpt_overhead` of the time since then.
        """
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
        """Decide as SpeechBrain does, but True if a signal asks to stop. SpeechBrain calls it after each step."""
        self.stopping = stop_signals.asked(self.device)
        return self.stopping or super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    def _save_intra_epoch_ckpt(self):
        """Save as SpeechBrain does, then end the run if a signal asks to stop."""
        self.spread.collect()
        super()._save_intra_epoch_ckpt()
        self._stop_if_asked()

    def evaluate_batch(self, batch, stage):
        """Validate as SpeechBrain does, and end the run between two batches if a signal asks to stop.

        The checkpoint is that of the epoch's last step, so the next start repeats the validation from its first batch.
        With several processes, which may have different numbers of batches, the run ends after the validation.
        """
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
        """Save as SpeechBrain does within an epoch, and add the epoch's losses so far."""
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
        """Save the task's weights alone, without what only its training needs: optimizers, losses, loader."""
        kept = {*self.handed_on, "counter"}
        self.checkpointer.recoverables = {k: v for k, v in self.checkpointer.recoverables.items() if k in kept}
        meta = {"epoch": self.task.epochs, "finished": True}
        self.checkpointer.save_and_keep_only(meta=meta, num_to_keep=1)
