"""The Brain that all encoder trainers share: seeds, rates, optimizers, checkpoints, progress.

Legend: B clips, D features, C classes. A trainer adds `compute_forward` and `compute_objectives`; the loops are
SpeechBrain's.
"""

import inspect
import logging
from dataclasses import dataclass, field
from time import monotonic

import numpy as np
import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from speechbrain.utils.distributed import ddp_broadcast
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from models.embed import embed
from utils.run.hardware import give_back_freed_memory
from utils.run.processes import joint_loss, mean, pad_as_joint, rank, share_buffers, total, world_size
from utils.run.signals import Stopped, stop_signals
from utils.training.collapse import Spread, collapse_warning
from utils.training.schedulers import WarmupCosineScheduler
from utils.training.steps import AccuracyCount, FiniteSteps

logger = logging.getLogger(__name__)

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
    clip_names : sequence of str
        By clip number, to name the clips of a batch.
    on_step : callable
        Called after each step with (task, epoch, loss tensor).
    on_epoch : callable
        Called after each epoch with a dict of figures.
    best : utils.training.checkpoints.BestEpoch, optional
        Where each epoch is validated: keeps the best one's weights, which become the task's.
    save_costs : callable
        Called after each epoch, see `utils.run.costs.training_costs`.
    """

    index: int
    epochs: int
    steps_per_epoch: int
    seed: int
    schedule: WarmupCosineScheduler
    counter: object
    clip_names: object
    on_step: object
    on_epoch: object
    best: object = None
    save_costs: object = lambda: None
    losses: dict = field(default_factory=dict)


def _fused_as_made(optimizer, state):
    """The state to load, without the choice of the device that it was saved on: loading it goes by what is in there."""
    if "fused" not in optimizer.defaults:
        return state
    chosen = {"fused": optimizer.defaults["fused"]}
    return {**state, "param_groups": [{**group, **chosen} for group in state["param_groups"]]}


def _seconds_to_save(modules):
    """What a first checkpoint may take, until one has been timed: weights and momentum at 200 MB a second."""
    return sum(2 * weight.numel() * weight.element_size() for weight in modules.parameters()) / 2e8


@register_checkpoint_hooks
class TaskBrain(AccuracyCount, FiniteSteps, sb.Brain):
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
        self.task, self.figures, self.stopping = task, {}, 0
        self.spread, self.has_collapsed = Spread(), False
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("spread", self.spread, optional_load=True)  # older ones lack it
        self.last_save, self.save_seconds = monotonic(), _seconds_to_save(self.modules)

    def on_stage_start(self, stage, epoch=None):
        """The loader's processes are about to be forked."""
        super().on_stage_start(stage, epoch)
        if self.hparams.num_workers:
            give_back_freed_memory()

    def embed_view(self, view, stage):
        """Embed one view, a PaddedData of [B, samples] -> [B, D]."""
        if stage != sb.Stage.TRAIN:
            return embed(self.modules, view.data, view.lengths)
        h = embed(self.modules, *pad_as_joint(view.data, view.lengths), augment=True)
        self.spread.add("emb", h)
        return h

    def weighted_sum(self, losses, weights):
        """Join losses."""
        losses = {name: joint_loss(loss) for name, loss in losses.items()}
        loss = sum(weights[name] * loss for name, loss in losses.items())
        self.add_losses({"loss": loss, **losses})
        return loss

    def add_losses(self, losses):
        """Keep sums of those that are finite for the log, on their device: nothing is waited for."""
        for name, loss in losses.items():
            total, count = self.task.losses.get(name, (0.0, 0))
            loss, finite = loss.detach().double(), loss.detach().isfinite()
            self.task.losses[name] = (total + torch.where(finite, loss, 0.0), count + finite)

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
        fused = self._fused()
        self.optimizers_dict = {name: self.opt_class(parameters, **fused) for name, parameters in groups.items()}
        for optimizer in self.optimizers_dict.values():
            optimizer.register_load_state_dict_pre_hook(_fused_as_made)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverables(self.optimizers_dict)

    def _fused(self):
        """On a GPU one pass over weights, gradients and momentum, where the optimizer has it and the YAML doesn't
        choose. Not in fp16: a first step that overflows would leave SGD's momentum uninitialised. Not on a CPU: it
        gains little, and takes tensors of different strides for alike."""
        chosen = {"foreach", "differentiable", "fused"} & set(getattr(self.opt_class, "keywords", ()))
        able = "fused" in inspect.signature(self.opt_class).parameters and self.device_type == "cuda"
        return {"fused": True} if able and not chosen and not self.scaler.is_enabled() else {}

    def on_fit_batch_start(self, batch, should_step):
        """Seed the step and set its rate: both are functions of (seed, task, epoch, step), so a resumed run and a
        straight one draw the same augmentation and dropout. Of several processes each draws its own."""
        epoch = self.task.counter.current
        own = [rank()] if world_size() > 1 else []
        key = np.random.SeedSequence([self.task.seed, self.task.index, epoch, self.step, *own])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for group in self.optimizers_dict["optimizer"].param_groups:
            group["lr"] = self._rate(epoch)
        self.clip_numbers, self.buffers_before = batch.id.tolist(), [buffer.clone() for buffer in self._buffers()]

    def _buffers(self):
        """Running statistics."""
        return [buffer for name in HEADS_AND_ENCODER if name in self.modules for buffer in self.modules[name].buffers()]

    def place(self):
        """Task, epoch and step."""
        return f"task {self.task.index}, epoch {self.task.counter.current}, step {self.step}"

    def clips(self):
        """By path; with mixup, those that others are blended with are not among them."""
        return ", clips " + ", ".join(self.task.clip_names[clip] for clip in self.clip_numbers)

    def _rate(self, epoch):
        """Learning rate of the epoch's current step."""
        return self.task.schedule((epoch - 1) * self.task.steps_per_epoch + self.step - 1)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Move the progress bar; take back running statistics that a step may have made NaN for good."""
        finite = loss.detach().isfinite()
        for buffer, before in zip(self._buffers(), self.buffers_before, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))
        self.task.on_step(self.task.index, self.task.counter.current, loss)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Keep the epoch's figures; the epoch is over after its validation, if it has one."""
        if stage == sb.Stage.TRAIN:
            self.report_steps_left_out()
            share_buffers(self.modules)
            means = {name: float(total) / (int(n) or float("nan")) for name, (total, n) in self.task.losses.items()}
            self.figures = {"task": self.task.index, "epoch": epoch, **means}
            self.figures |= {**self.spread.measure(), "lr": self._rate(epoch)}
            self._warn_of_collapse()
            self.step = 0  # SpeechBrain resets it after this hook: saved as it is, a resumed epoch would begin there
        else:
            correct, clips = total(self.correct, self.total)
            accuracy, stage_loss = correct / clips, mean(stage_loss, self.batches)
            self.task.best.update(epoch, accuracy, stage_loss)
            self.figures |= {"valid_loss": stage_loss, "valid_accuracy": accuracy}
        if stage == sb.Stage.VALID or self.task.best is None:
            self._end_epoch(epoch)

    def _warn_of_collapse(self):
        """Once a task."""
        warning = collapse_warning(self.figures)
        if warning and not self.has_collapsed:
            logger.warning("task %d, epoch %d: %s", self.task.index, self.figures["epoch"], warning)
            self.has_collapsed = True

    def _end_epoch(self, epoch):
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
        """Save as SpeechBrain does, unless the run has diverged, and end the run if that is why."""
        self.read_losses()
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
        kept = {*HEADS_AND_ENCODER, "counter"}
        self.checkpointer.recoverables = {k: v for k, v in self.checkpointer.recoverables.items() if k in kept}
        meta = {"epoch": self.task.epochs, "finished": True}
        self.checkpointer.save_and_keep_only(meta=meta, num_to_keep=1)
