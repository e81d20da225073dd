"""The Brain that all encoder trainers share: seeds, rates, optimizers, checkpoints, progress.

Legend: B clips, D features, C classes. A trainer adds `compute_forward` and `compute_objectives`; the loops are
SpeechBrain's.
"""

import time
from dataclasses import dataclass, field

from utils.distributed import joint_loss, mean, n_processes, pad_as_joint, process, share_buffers, total
from utils.schedulers import WarmupCosineScheduler

import numpy as np
import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from speechbrain.utils.distributed import ddp_broadcast
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

HEADS_AND_ENCODER = ("embedding_model", "projector", "predictor", "classifier")  # what a task hands to the next


@dataclass
class TaskContext:
    """What a Brain has to know of the task that it trains.

    Attributes
    ----------
    index : int
        The task's number, from 0.
    epochs, steps_per_epoch : int
        As they will be run.
    seed : int
        The experiment's.
    schedule : callable
        Step from 0 -> learning rate.
    counter : speechbrain.utils.epoch_loop.EpochCounter
    on_step : callable
        Called after each step with (task, epoch, loss tensor).
    on_epoch : callable
        Called after each epoch with a dict of figures.
    best : utils.checkpoints.BestEpoch, optional
        Where each epoch is validated: keeps the best one's weights, which become the task's.
    save_costs : callable
        Called after each epoch, see `utils.costs.training_costs`.
    """

    index: int
    epochs: int
    steps_per_epoch: int
    seed: int
    schedule: WarmupCosineScheduler
    counter: object
    on_step: object
    on_epoch: object
    best: object = None
    save_costs: object = lambda: None
    losses: dict = field(default_factory=dict)


def embed(modules, wav, lengths, augment=False):
    """Waveforms to embeddings, the one way for training and evaluation.

    Parameters
    ----------
    modules : mapping
        `compute_features`, `mean_var_norm`, `embedding_model` and, where asked for, `augment`.
    wav : torch.Tensor
        [B, samples].
    lengths : torch.Tensor
        [B], relative to the longest.
    augment : bool
        Whether these are training views.

    Returns
    -------
    torch.Tensor
        [B, D].
    """
    features = modules["compute_features"](wav)  # [B, T, F], log-mel in dB
    if augment:
        features = modules["augment"](features)
    features = modules["mean_var_norm"](features, lengths)
    return modules["embedding_model"](features, lengths).squeeze(1)  # [B, D]


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


@register_checkpoint_hooks
class TaskBrain(AccuracyCount, sb.Brain):
    """One task of an encoder's training.

    Parameters
    ----------
    task : TaskContext
    **kwargs
        As for `speechbrain.Brain`.

    Attributes
    ----------
    n_views : int
        Crops of each clip in a batch.
    """

    n_views = 2

    def __init__(self, task, **kwargs):
        super().__init__(**kwargs)
        self.task, self.figures = task, {}
        self.last_save, self.save_seconds = time.monotonic(), 0.0

    def embed_view(self, view, stage):
        """Embed one view, a PaddedData of [B, samples] -> [B, D]."""
        if stage != sb.Stage.TRAIN:
            return embed(self.modules, view.data, view.lengths)
        return embed(self.modules, *pad_as_joint(view.data, view.lengths), augment=True)

    def weighted_sum(self, losses, weights):
        """Join losses, and keep their means for the log."""
        losses = {name: joint_loss(loss) for name, loss in losses.items()}
        for name, loss in losses.items():
            total, count = self.task.losses.get(name, (0.0, 0))
            self.task.losses[name] = (total + float(loss.detach()), count + 1)
        return sum(weights[name] * loss for name, loss in losses.items())

    def _wrap_distributed(self):
        """Wrap what is trained for several processes, as SpeechBrain does, but for two traps. Its SyncBatchNorm refuses
        a CPU. And its DDP sends buffers at each forward pass: in training that spoils the graph of the first view, in
        validation it waits for processes that have a batch less."""
        if not self.distributed_launch:
            return
        cuda = self.device_type == "cuda"
        for name, module in self.modules.items():
            if any(parameter.requires_grad for parameter in module.parameters()):
                self.modules[name] = DistributedDataParallel(
                    SyncBatchNorm.convert_sync_batchnorm(module) if cuda else module,
                    device_ids=[self.device] if cuda else None,
                    find_unused_parameters=self.find_unused_parameters,
                )
                self.modules[name].broadcast_buffers = False  # the argument has another name since torch 2.13

    def init_optimizers(self):
        """Two optimizers: SpeechBrain clips an optimizer's first parameter group only, and the predictor's rate is
        constant (SimSiam, arXiv 2011.10566, section 4.2)."""
        predictor = list(self.modules["predictor"].parameters()) if "predictor" in self.modules else []
        apart = {id(p) for p in predictor}
        groups = {"optimizer": [p for p in self.modules.parameters() if p.requires_grad and id(p) not in apart]}
        if predictor:
            groups["predictor_optimizer"] = predictor
        self.optimizers_dict = {name: self.opt_class(parameters) for name, parameters in groups.items()}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverables(self.optimizers_dict)

    def on_fit_batch_start(self, batch, should_step):
        """Seed the step and set its rate: both are functions of (seed, task, epoch, step), so a resumed run and a
        straight one draw the same augmentation and dropout. Of several processes each draws its own."""
        epoch = self.task.counter.current
        own = [process()] if n_processes() > 1 else []
        key = np.random.SeedSequence([self.task.seed, self.task.index, epoch, self.step, *own])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for group in self.optimizers_dict["optimizer"].param_groups:
            group["lr"] = self._rate(epoch)

    def _rate(self, epoch):
        """Learning rate of the epoch's current step."""
        return self.task.schedule((epoch - 1) * self.task.steps_per_epoch + self.step - 1)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Move the progress bar."""
        self.task.on_step(self.task.index, self.task.counter.current, loss)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Keep the epoch's figures; the epoch is over after its validation, if it has one."""
        if stage == sb.Stage.TRAIN:
            share_buffers(self.modules)
            means = {name: total / count for name, (total, count) in self.task.losses.items()}
            self.figures = {"task": self.task.index, "epoch": epoch, "loss": stage_loss, **means}
            self.figures["lr"] = self._rate(epoch)
            self.task.losses.clear()
            # SpeechBrain resets these after this hook: saved as they are, a resumed run would average from here on.
            self.step, self.avg_train_loss = 0, 0.0
        else:
            correct, clips = total(self.correct, self.total)
            accuracy, stage_loss = correct / clips, mean(stage_loss, self.batches)
            self.task.best.update(epoch, accuracy, stage_loss)
            self.figures |= {"valid_loss": stage_loss, "valid_accuracy": accuracy}
        if stage == sb.Stage.VALID or self.task.best is None:
            self._end_epoch(epoch)

    def _end_epoch(self, epoch):
        """Log the epoch; save it if it is the task's last, or if saving so far took less than its share of the time."""
        self.task.on_epoch(self.figures)
        self.task.save_costs()
        if epoch == self.task.epochs:
            if self.task.best is not None:
                self.task.best.restore()
            self._save_finished()
        elif ddp_broadcast(time.monotonic() - self.last_save >= self.save_seconds / self.hparams.ckpt_overhead):
            begun = time.monotonic()
            self.checkpointer.save_and_keep_only(meta={"epoch": epoch}, num_to_keep=1)
            self.last_save = time.monotonic()
            self.save_seconds = self.last_save - begun

    @mark_as_saver
    def _save(self, path):
        """Add the losses so far to what SpeechBrain saves in the middle of an epoch."""
        super()._save(path)
        with open(path, "a", encoding="utf-8") as file:
            yaml.safe_dump({"losses": {name: list(entry) for name, entry in self.task.losses.items()}}, file)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        super()._recover(path, end_of_epoch)
        with open(path, encoding="utf-8") as file:
            self.task.losses.update({name: tuple(entry) for name, entry in yaml.safe_load(file)["losses"].items()})

    def _save_finished(self):
        """Keep the weights of the task, and nothing that only its training needed."""
        kept = {*HEADS_AND_ENCODER, "counter"}
        self.checkpointer.recoverables = {k: v for k, v in self.checkpointer.recoverables.items() if k in kept}
        meta = {"epoch": self.task.epochs, "finished": True}
        self.checkpointer.save_and_keep_only(meta=meta, num_to_keep=1)
