"""The Brain of all encoder trainers: seeds, learning rates, optimizers, checkpoints, progress.

A trainer adds `compute_forward`, which returns a dict, and `compute_objectives`, a function of that dict. The loops are
SpeechBrain's. Legend: B clips, T frames, F mel bands, D features, C classes.
"""

import functools
import inspect
import logging
from collections.abc import Callable

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedData
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from models.embed import extract_features
from models.losses import SUP_LOSSES, is_contrastive
from models.methods import METHODS
from models.methods.base import Method, View
from utils.io.errors import InputError
from utils.run.hardware import give_back_freed_memory
from utils.run.keys import TRAINING_KEYS, call_with_keys
from utils.run.processes import joint_loss, mean, pad_as_joint, rank, share_buffers, share_weights, total, world_size
from utils.strategies import STRATEGIES, make_strategy
from utils.training.collapse import collapse_warning
from utils.training.context import TaskContext
from utils.training.saving import SavedTraining
from utils.training.start import find_start
from utils.training.steps import AccuracyCount

logger = logging.getLogger(__name__)


def _fused_as_made(optimizer, state):
    """Return the state to load with this optimizer's `fused`, as the saved value fits the device of the saving run."""
    if "fused" not in optimizer.defaults:
        return state
    chosen = {"fused": optimizer.defaults["fused"]}
    return {**state, "param_groups": [{**group, **chosen} for group in state["param_groups"]]}


class TaskBrain(AccuracyCount, SavedTraining):
    """The Brain of one task.

    Parameters
    ----------
    task
        The task to train.
    **kwargs
        As for `speechbrain.Brain`.

    Attributes
    ----------
    needs
        Keys that the trainer's YAML must have.
    n_views
        Crops of each clip in a batch.
    ssl_method
        The method, in a trainer that has just one. None: the YAML's key `ssl_method` names it, if there is such a key.
    validates
        Validate each epoch, and keep the weights of the task's best epoch.
    choices
        Keys that name one of several classes -> name -> class, for ``--help``.
    """

    needs: tuple[str, ...] = TRAINING_KEYS
    n_views: int = 2
    ssl_method: str | None = None
    validates: bool = False
    choices: dict[str, dict[str, type]] = {"strategy": STRATEGIES}
    find_start = staticmethod(find_start)

    @classmethod
    def check(cls, hparams: dict):
        """Raise InputError for a method or strategy that is unknown or can't work with the other settings."""
        make_strategy(hparams, cls.make_method(hparams))
        cls.make_sup_loss(hparams)

    @classmethod
    def uses_labels(cls, hparams: dict) -> bool:
        """Return whether the losses need the clips' classes."""
        return "sup_loss" in hparams and hparams.get("sup_weight", 1) > 0

    @classmethod
    def make_method(cls, hparams: dict) -> Method | None:
        """Build the self-supervised method with the YAML's heads; None for a trainer that has none."""
        name = cls.ssl_method or hparams.get("ssl_method")
        if name is None:
            return None
        if name not in METHODS:
            raise InputError(f"ssl_method is {name!r}: choose one of {', '.join(METHODS)}.")
        return call_with_keys(METHODS[name], hparams)

    @classmethod
    def make_sup_loss(cls, hparams: dict) -> Callable | None:
        """Return the labels' loss that the key `sup_loss` names or is; None for a trainer that has none."""
        loss = hparams.get("sup_loss")
        if isinstance(loss, str) and loss in SUP_LOSSES:
            loss = SUP_LOSSES[loss]()
        if "sup_loss" in hparams and not callable(loss):
            raise InputError(f"sup_loss is {loss!r}: choose one of {', '.join(SUP_LOSSES)}.")
        if is_contrastive(loss) and hparams.get("sup_weight", 1):
            if cls.validates:
                raise InputError("sup_loss compares clips, and a classifier stays untrained: use supclr_train.py.")
            if hparams["use_mixup"]:
                raise InputError("sup_loss compares clips by class, and mixup blends classes: set use_mixup to False.")
        return loss

    def __init__(self, task: TaskContext, **kwargs):
        super().__init__(task, **kwargs)
        self.method, self.strategy, self.plain = task.method, task.strategy, False
        self.strategys_losses, self.has_warned_of_zero = set(), False

    def on_fit_start(self):
        """Let the strategy prepare the task, then wrap modules, make optimizers and load the newest checkpoint."""
        self.strategy.before_task(self)
        super().on_fit_start()

    def on_stage_start(self, stage, epoch=None):
        """Reset the counts, and return freed memory to the system before the loader forks its workers."""
        super().on_stage_start(stage, epoch)
        if self.hparams.num_workers:
            give_back_freed_memory()

    @functools.cached_property
    def sup_loss(self):
        """The labels' loss, see `models.losses.SUP_LOSSES`."""
        return self.make_sup_loss(vars(self.hparams))

    # The forward pass

    def prepare_batch(self, batch):
        """Move a batch to the device; the strategy may mix a batch with its memory batch."""
        batch = batch.to(self.device, non_blocking=True)
        return self.strategy.inputs(self, batch) if getattr(batch, "memory", None) is not None else batch

    def embed_view(self, view: PaddedData, stage: sb.Stage) -> View:
        """Embed one view, [B, samples]."""
        train = stage == sb.Stage.TRAIN
        wav, lengths = pad_as_joint(view.data, view.lengths) if train else (view.data, view.lengths)
        features = extract_features(self.modules, wav, lengths, augment=train)  # [B, T, F]
        return View(features, lengths, self.modules["embedding_model"](features, lengths).squeeze(1))

    def embed_views(self, batch, stage: sb.Stage, n_views: int = 2) -> dict:
        """Embed the first views of a batch, each by itself, since batch statistics are per view.

        Returns
        -------
        dict
            `view1`, `view2` (see `models.methods.base.View`) and `h1`, `h2` [B, D], as far as `n_views` goes.
        """
        out = {}
        for i in range(1, n_views + 1):
            out[f"view{i}"] = self.embed_view(getattr(batch, f"view{i}"), stage)
            out[f"h{i}"] = out[f"view{i}"].h
        return out

    def with_memory(self, out: dict, batch, stage: sb.Stage) -> dict:
        """Add `memory`, the same forward pass over the memory batch, if there is one and the strategy embeds it."""
        memory = getattr(batch, "memory", None)
        if memory is None or not self.strategy.embeds_memory:
            return out
        return {**out, "memory": self.compute_forward(memory, stage)}

    def weighted_sum(self, losses: dict, weights: dict[str, float], out: dict, batch) -> torch.Tensor:
        """Sum the weighted losses, the strategy's included, to a scalar; `out["losses"]` gets each for the log."""
        if not self.plain:
            own = losses.keys()
            losses, weights = self.strategy.losses(self, losses, weights, out, batch)
            self.strategys_losses |= losses.keys() - own
        losses = {name: joint_loss(loss) for name, loss in losses.items()}
        loss = sum(weights[name] * loss for name, loss in losses.items())
        out["losses"] = {"loss": loss, **losses}
        return loss

    def memory_loss(self, out: dict, batch) -> torch.Tensor:
        """Return the trainer's own loss of the memory batch, without the strategy's; a scalar."""
        return self.own_loss(out["memory"], batch.memory)

    def own_loss(self, out: dict, batch) -> torch.Tensor:
        """Return the trainer's own loss of a batch, given its forward pass, without the strategy's; a scalar."""
        self.plain = True
        try:
            return self.compute_objectives(out, batch, sb.Stage.TRAIN)
        finally:
            self.plain = False

    # Optimizers and processes

    def _wrap_distributed(self):
        """Wrap the trained modules in DDP, send rank 0's other modules to all, and convert to SyncBatchNorm on GPUs.

        DDP itself sends rank 0's weights. State without a gradient, such as a momentum encoder, is not wrapped.

        SpeechBrain's method can't be used. It converts to SyncBatchNorm on a CPU too, where that raises. And its DDP
        broadcasts buffers at each forward pass: in training the second view's broadcast overwrites buffers that the
        graph of the first view needs, and in validation it hangs where a process has fewer batches.
        """
        if not self.distributed_launch:
            return
        cuda = self.device_type == "cuda"
        for name, module in self.modules.items():
            module = SyncBatchNorm.convert_sync_batchnorm(module) if cuda else module
            if any(parameter.requires_grad for parameter in module.parameters()):
                self.modules[name] = DistributedDataParallel(
                    module,
                    device_ids=[self.device] if cuda else None,
                    find_unused_parameters=self.find_unused_parameters,
                )
                self.modules[name].broadcast_buffers = False  # set here, as torch 2.13 renamed the argument
            elif name in self.handed_on:
                self.modules[name] = module
                share_weights(module)

    def init_optimizers(self):
        """Make an optimizer at the scheduled rate and one at a constant rate, for the method's `constant_rate` heads.

        The constant rate is that of SimSiam's predictor, arXiv 2011.10566, section 4.2. Two parameter groups of one
        optimizer won't do, because SpeechBrain clips the gradients of its first group only.
        """
        names = self.method.constant_rate if self.method is not None else ("predictor",)
        constant = [p for name in names if name in self.modules for p in self.modules[name].parameters()]
        apart = {id(p) for p in constant}
        groups = {"optimizer": [p for p in self.modules.parameters() if p.requires_grad and id(p) not in apart]}
        if constant:
            groups["predictor_optimizer"] = constant
        fused = self._fused()
        self.optimizers_dict = {name: self.opt_class(parameters, **fused) for name, parameters in groups.items()}
        for optimizer in self.optimizers_dict.values():
            optimizer.register_load_state_dict_pre_hook(_fused_as_made)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverables(self.optimizers_dict)

    def _fused(self):
        """Choose the optimizer's fused form on a GPU, if it has one and the YAML doesn't choose.

        Not in fp16, where a first step that overflows would leave SGD's momentum uninitialised. Not on a CPU, where the
        fused form gains little and is wrong for tensors whose strides differ.
        """
        chosen = {"foreach", "differentiable", "fused"} & set(getattr(self.opt_class, "keywords", ()))
        able = "fused" in inspect.signature(self.opt_class).parameters and self.device_type == "cuda"
        return {"fused": True} if able and not chosen and not self.scaler.is_enabled() else {}

    def freeze_optimizers(self, optimizers):
        """Let the strategy choose which optimizers step."""
        return self.strategy.optimizers(self, optimizers)

    def change_gradients(self):
        """Let the strategy change the gradients."""
        self.strategy.gradients(self)

    def after_step(self):
        """Update method and strategy after an optimizer step, such as a momentum encoder."""
        if self.method is not None:
            done = (self.task.counter.current - 1) * self.task.steps_per_epoch + self.step
            self.method.after_step(self.modules, done / (self.task.epochs * self.task.steps_per_epoch))
        self.strategy.after_step(self)

    # Steps and epochs

    def on_fit_batch_start(self, batch, should_step):
        """Seed the step and set its learning rate.

        Both are functions of (seed, task, epoch, step), so a resumed run draws the same augmentation and dropout as an
        uninterrupted one. Each process draws its own.
        """
        epoch = self.task.counter.current
        own = [rank()] if world_size() > 1 else []
        key = np.random.SeedSequence([self.task.seed, self.task.index, epoch, self.step, *own])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for group in self.optimizers_dict["optimizer"].param_groups:
            group["lr"] = self._rate(epoch)
        self.clip_numbers, self.buffers_before = batch.id.tolist(), [buffer.clone() for buffer in self._buffers()]

    def _buffers(self):
        """List the buffers of the modules that are saved, such as running statistics."""
        return [buffer for name in self.handed_on for buffer in self.modules[name].buffers()]

    def place(self) -> str:
        """Return task, epoch and step in words."""
        return f"task {self.task.index}, epoch {self.task.counter.current}, step {self.step}"

    def clips(self) -> str:
        """Return the paths of the batch's clips, without the clips that mixup blends them with."""
        return ", clips " + ", ".join(self.task.store.paths[clip] for clip in self.clip_numbers)

    def _rate(self, epoch):
        """Return the learning rate of the epoch's current step."""
        return self.task.schedule((epoch - 1) * self.task.steps_per_epoch + self.step - 1)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Log the step. After a loss that is not finite, restore the buffers, which may have become NaN."""
        if not loss.isfinite():
            for buffer, before in zip(self._buffers(), self.buffers_before, strict=True):
                buffer.copy_(before)
        elif "z1" in outputs:
            self.method.after_batch(self.modules, outputs)
        for name, part in outputs["losses"].items():
            total, count = self.task.losses.get(name, (0.0, 0))
            value, finite = part.detach().double(), part.detach().isfinite()
            self.task.losses[name] = (total + torch.where(finite, value, 0.0), count + finite)
        self.spread.add("emb", *(outputs[name] for name in ("h1", "h2") if name in outputs))
        if "z1" in outputs:
            self.spread.add("z", outputs["z1"], outputs["z2"])
        self.task.on_step(self.task.index, self.task.counter.current, loss)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Collect the epoch's figures, and end the epoch after its training or, if it has one, its validation."""
        if stage == sb.Stage.TRAIN:
            self.report_steps_skipped()
            share_buffers(self.modules)
            means = {name: float(total) / (int(n) or float("nan")) for name, (total, n) in self.task.losses.items()}
            self.figures = {"task": self.task.index, "epoch": epoch, **means}
            self.figures |= {**self.spread.measure(), "lr": self._rate(epoch)}
            self.figures |= {**(self.method.figures() if self.method else {}), **self.strategy.figures(self)}
            self._warn_of_collapse()
            self._warn_of_zero()
            # SpeechBrain resets these after this hook, but the checkpoint is saved within it: a resumed run would
            # begin its next epoch with them.
            self.step, self.avg_train_loss = 0, 0.0
        else:
            correct, clips = total(self.correct, self.total)
            accuracy, stage_loss = correct / clips, mean(stage_loss, self.batches)
            self.task.best.update(epoch, accuracy, stage_loss)
            self.figures |= {"valid_loss": stage_loss, "valid_accuracy": accuracy}
        if stage == sb.Stage.VALID or self.task.best is None:
            self.end_epoch(epoch)

    def _warn_of_collapse(self):
        """Log a warning if a representation has collapsed, once per task."""
        warning = collapse_warning(self.figures)
        if warning and not self.has_collapsed:
            logger.warning("task %d, epoch %d: %s", self.task.index, self.figures["epoch"], warning)
            self.has_collapsed = True

    def _warn_of_zero(self):
        """Log a warning if a loss of the strategy was exactly 0 in all steps of the epoch, once per task."""
        idle = sorted(name for name in self.strategys_losses if self.figures.get(name) == 0)
        if idle and not self.has_warned_of_zero:
            said = "task %d, epoch %d: the strategy's loss %s was exactly 0 in every step, so it changes nothing."
            logger.warning(said, self.task.index, self.figures["epoch"], " and ".join(idle))
            self.has_warned_of_zero = True
