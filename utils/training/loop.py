"""The task loop of the encoder trainers: one Brain per task, with files as the only hand-over between tasks."""

import functools
import logging
import os
import shutil
from pathlib import Path
from time import monotonic

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import ddp_broadcast
from speechbrain.utils.epoch_loop import EpochCounter

from datasets.batches import EpochSampler, ViewDataset, WholeClips, make_mixup
from datasets.memory import JointBatch, JointSampler, JointViews
from models.heads import MLP
from utils.io.errors import InputError
from utils.io.files import write_atomically
from utils.results.figures.training import plot_training
from utils.run.costs import training_costs
from utils.run.hardware import keep_freed_memory
from utils.run.processes import main_only, rank, world_size
from utils.run.signals import stop_signals
from utils.strategies import make_strategy
from utils.training.best_epoch import BestEpoch
from utils.training.checkpoints import (
    AtomicCheckpointer,
    is_finished,
    latest_checkpoint,
    load_weights,
    read_state,
    set_aside_damaged,
    sweep_replaced,
)
from utils.training.context import TaskContext, handed_on
from utils.training.plan import plan_tasks
from utils.training.progress import RunProgress
from utils.training.schedulers import WarmupCosineScheduler
from utils.training.start import load_start, plan_start, take_over
from utils.training.workers import WatchedLoader, workers_ended

logger = logging.getLogger(__name__)

FIGURE = "training.png"
HEADS = {"projector", "predictor"}  # of the YAML's modules: a method may use them, replace them or do without


class Stream:
    """The tasks of a run, with the modules that are trained on one task after the other.

    A finished task is not trained again, and an interrupted one goes on from its newest checkpoint. A damaged
    checkpoint is not used: its task goes on from the checkpoint before, or is trained again from the previous task.
    Either way the weights are the same, bit for bit, so the tasks after it remain valid.

    Parameters
    ----------
    brain_class : type
        A subclass of `utils.training.brain.TaskBrain`.
    run : utils.run.experiment.Run
        With its data read.

    Attributes
    ----------
    modules : dict of str to torch.nn.Module
        What is trained and handed on, with the weights from which task 0 starts.
    plan : list of utils.training.plan.TaskPlan

    Raises
    ------
    InputError
        A task can't be trained.
    """

    def __init__(self, brain_class, run):
        self.brain_class, self.run, hparams = brain_class, run, run.hparams
        self.method = brain_class.make_method(hparams)
        self.strategy = make_strategy(hparams, self.method)
        with_memory = self.strategy.uses_memory
        self.memory_batch_size = memory_batch_size(hparams, self.strategy)
        self.plan = plan_tasks(hparams, run.options, run.data, brain_class.validates, with_memory)
        method_modules = self.method.modules if self.method else {}
        unused = HEADS - method_modules.keys() if self.method else ()  # heads that the method does without
        self.modules = {name: module for name, module in hparams["modules"].items() if name not in unused}
        if "classifier" in hparams:
            self.modules["classifier"] = hparams["classifier"](n_classes=len(run.data.classes))
        if hparams.get("sup_projector"):
            sizes, norm_type = 3 * [hparams["emb_dim"]], hparams.get("proj_norm_type", "bn")
            self.modules["sup_projector"] = MLP(*sizes, norm_type=norm_type)
        self.modules |= {**method_modules, **self.strategy.modules}
        if run.start is not None:
            plan_start(run.start, run, handed_on(self.modules), self.strategy)

    def train(self, after_task=None):
        """Train an encoder on one task after the other.

        Parameters
        ----------
        after_task : callable, optional
            Called with (task, folder of its checkpoints) after each task, also after one that an earlier start trained.
        """
        keep_freed_memory()
        folders = [os.path.join(self.run.save_folder, f"task{t}") for t in range(len(self.plan))]
        self._write_rows(folders)
        names, start = self.run.data.task_names(), self.run.start
        begun_with = "" if start is None else os.path.join(self.run.save_folder, start.folder)
        with RunProgress(self.run.hparams, self.run.options, self.plan) as progress:
            for t, folder in enumerate(folders):
                if ddp_broadcast(is_finished(folder)):
                    progress.skip(t)
                else:
                    previous = folders[t - 1] if t > 0 else begun_with
                    if begun_with and t == start.first:
                        main_only(load_start)(start, previous, handed_on(self.modules), self.method)
                    elif previous:  # rank 0 alone: others may not see the files yet, and DDP sends them the weights
                        main_only(load_weights)(previous, handed_on(self.modules))
                    begun = monotonic()
                    self._train_one_task(t, folder, previous, progress)
                    progress.task_done(t, names[t], monotonic() - begun)
                sweep_replaced(folder)
                if after_task is not None:
                    after_task(t, folder)
        _draw_training(self.run, self.strategy.adds)

    @main_only
    def _write_rows(self, folders):
        """Set damaged checkpoints aside, then write each task's clips, except those of finished tasks."""
        start = self.run.start
        for folder in [*folders, *([os.path.join(self.run.save_folder, start.folder)] if start else [])]:
            set_aside_damaged(folder)
        if self.brain_class.uses_labels(self.run.hparams):
            for folder in folders:
                _forget_fewer_classes(folder, self.modules["classifier"])
        if start is not None:
            take_over(start, self.run.save_folder)
        finished = [t for t, folder in enumerate(folders) if is_finished(folder)]
        if len(finished) < len(folders):
            Path(self.run.folder, FIGURE).unlink(missing_ok=True)  # of fewer tasks
        save_rows(self.run.save_folder, self.run.data, finished)

    def _train_one_task(self, t, folder, previous_folder, progress):
        """Train task `t` with a fresh optimizer, schedule and epoch counter, and save it in `folder`."""
        hparams, plan, counter = self.run.hparams, self.plan[t], EpochCounter(self.plan[t].epochs)
        recoverables = handed_on(self.modules)
        best = BestEpoch(dict(recoverables)) if len(plan.valid) else None
        recoverables |= {"counter": counter, **({"best": best} if best else {})}
        warmup = min(hparams["warmup_epochs"], plan.epochs - 1) * plan.steps
        context = TaskContext(
            index=t,
            folder=folder,
            previous_folder=previous_folder,
            rows=plan.rows,
            store=self.run.data.store,
            method=self.method,
            strategy=self.strategy,
            epochs=plan.epochs,
            steps_per_epoch=plan.steps,
            seed=hparams["seed"],
            views=functools.partial(self._views, t),
            schedule=WarmupCosineScheduler(hparams["lr"], hparams["final_lr"], plan.total_steps, warmup),
            counter=counter,
            on_step=progress.step,
            on_epoch=progress.epoch,
            best=best,
            seen_labels=labels_before(self.run.data, t),
        )
        brain = self.brain_class(
            task=context,
            modules=self.modules,
            opt_class=hparams["opt_class"],
            hparams=hparams,
            run_opts=self.run.options,
            checkpointer=AtomicCheckpointer(folder, recoverables),
        )
        loader = self._train_loader(t, torch.device(brain.device).type == "cuda")
        brain.train_sampler = loader.sampler if loader.batch_size else loader.batch_sampler  # told the epoch
        brain.checkpointer.add_recoverable("dataloader-TRAIN", loader)
        valid = self._valid_loader(plan.valid)
        costs = training_costs(self.run.folder, brain.device)
        with stop_signals.deferred(), costs as context.save_costs, workers_ended(loader, valid):
            brain.fit(counter, loader, valid, progressbar=False)

    def _train_loader(self, t, pin_memory):
        """Make the loader of task `t`. The Brain's own would slice the batches among the processes a second time."""
        hparams, plan = self.run.hparams, self.plan[t]
        size, dataset = hparams["batch_size"], self._views(t, plan.rows)
        sampler = EpochSampler(len(dataset), hparams["seed"], t, size, rank(), world_size())
        how = {"num_workers": hparams["num_workers"], "pin_memory": pin_memory}
        if plan.memory.empty:
            size //= world_size()
            return WatchedLoader(dataset, batch_size=size, sampler=sampler, collate_fn=PaddedBatch, **how)
        joint = JointSampler(sampler, len(plan.memory), self.memory_batch_size)
        dataset = JointViews(dataset, self._views(t, plan.memory))
        return WatchedLoader(dataset, batch_sampler=joint, collate_fn=JointBatch, **how)

    def _views(self, t, rows):
        """Make the dataset of training views of `rows` at task `t`."""
        hparams, data = self.run.hparams, self.run.data
        mixup = make_mixup(hparams["use_mixup"], hparams["mixup_alpha"])
        crop_samples, n_classes = round(hparams["train_duration"] * hparams["sample_rate"]), len(data.classes)
        n_views = self.brain_class.n_views
        return ViewDataset(rows, data.store, crop_samples, n_classes, mixup, hparams["seed"], t, n_views)

    def _valid_loader(self, rows):
        """Make the loader of whole validation clips, unpadded, each in one process; None without clips."""
        if rows.empty:
            return None
        clips, hparams = WholeClips(rows, self.run.data.store), self.run.hparams
        batches = clips.batches(hparams["batch_size"])[rank() :: world_size()]
        how = {"num_workers": hparams["num_workers"], "collate_fn": PaddedBatch}
        return WatchedLoader(clips, batch_sampler=batches, **how)


def _forget_fewer_classes(folder, classifier):
    """Delete what an interrupted task has saved if classes have joined since: its losses and optimizer lack them."""
    path, meta = latest_checkpoint(folder) or (None, {"finished": True})
    if meta.get("finished"):
        return
    saved = read_state(folder, path, "classifier")
    if any(tensor.shape != saved[name].shape for name, tensor in classifier.state_dict().items()):
        logger.warning("%s was trained with fewer classes: that task begins anew.", path)
        shutil.rmtree(folder)


def save_rows(save_folder, data, finished=()):
    """Write each task's clips to ``{split}_task{t}_raw.csv``, which the notebook and readers of a result use.

    A finished task's files stay as they are, since its encoder was trained on the clips in them.
    """
    for (split, task), rows in data.rows.groupby(["split", "task"]):
        path = os.path.join(save_folder, f"{split}_task{task}_raw.csv")
        if task not in finished or not os.path.isfile(path):
            write_atomically(path, rows.to_csv(index=False))


def memory_batch_size(hparams, strategy):
    """Return the clips of a memory batch of all processes: the YAML's number or, for null, the strategy's share.

    Raises
    ------
    InputError
        The processes can't have equally many.
    """
    size, n = hparams.get("memory_batch_size"), world_size()
    size = round(strategy.memory_share * hparams["batch_size"]) if size is None else size
    if strategy.uses_memory and size % n:
        raise InputError(f"A memory batch has {size} clips, of all {n} processes together: set memory_batch_size to a "
                         f"multiple of {n}.")  # fmt: skip
    return size


def labels_before(data, t):
    """List the labels of the training clips of the tasks before `t`."""
    rows = data.split("train")
    return sorted(map(int, rows.loc[rows["task"] < t, "label"].unique()))


@main_only
def _draw_training(run, strategys_losses):
    figure, log = (os.path.join(run.folder, name) for name in (FIGURE, "train_log.csv"))
    if os.path.isfile(log) and not os.path.isfile(figure):
        plot_training(log, figure, losses=strategys_losses)
    logger.info("Weights after each task: %s. Losses: %s.", run.save_folder, figure)
