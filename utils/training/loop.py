"""The task loop of the encoder trainers: one Brain a task, files the only hand-over."""

import contextlib
import logging
import os
from time import monotonic

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader, make_dataloader
from speechbrain.utils.distributed import ddp_broadcast
from speechbrain.utils.epoch_loop import EpochCounter

from datasets.batches import EpochSampler, ViewDataset, WholeClips, make_mixup
from datasets.selection import current_and_replay, parse_keep, seen
from utils.io.errors import InputError
from utils.io.files import write_atomically
from utils.results.figures.training import plot_training
from utils.run.costs import training_costs
from utils.run.hardware import keep_freed_memory
from utils.run.processes import main_only, rank, world_size
from utils.run.signals import quiet_worker, stop_signals
from utils.training.best_epoch import BestEpoch
from utils.training.brain import HEADS_AND_ENCODER, TaskContext
from utils.training.checkpoints import AtomicCheckpointer, is_finished, load_weights, set_aside_damaged, sweep_replaced
from utils.training.progress import RunProgress
from utils.training.schedulers import WarmupCosineScheduler

logger = logging.getLogger(__name__)


def plan_tasks(hparams, run_opts, data, validate=False):
    """Select every task's clips and count its steps, so that what can't be trained is said before anything is.

    Parameters
    ----------
    hparams : dict
    run_opts : speechbrain.utils.run_opts.RunOptions
    data : datasets.prepare.Data
    validate : bool
        Whether each epoch is validated: on the validation clips of the current task and, with replay, of those before.

    Returns
    -------
    list of dict
        For each task: `rows` (its clips and the replayed ones), `valid` (validation clips, or none), `epochs`, `steps`
        (per epoch).

    Raises
    ------
    InputError
        A task has fewer clips than a batch, or none to validate on.
    """
    plan = []
    epochs, most = hparams["number_of_epochs"], None
    if run_opts.debug:
        epochs = min(epochs, run_opts.debug_epochs) if run_opts.debug_epochs > 0 else epochs
        most = run_opts.debug_batches
    for t in range(data.n_tasks):
        rows = current_and_replay(data.split("train"), t, hparams["replay_num_keep"], hparams["seed"])
        steps = len(rows) // hparams["batch_size"]
        if steps == 0:
            raise InputError(
                f"Task {t} ({data.task_names()[t]}) has {len(rows)} training clips, less than one batch of "
                f"{hparams['batch_size']}: lower batch_size, or put more classes into a task."
            )
        valid = _validation_rows(hparams, data, t) if validate else data.rows.iloc[:0]
        if validate and valid.empty:
            raise InputError(f"Task {t} ({data.task_names()[t]}) has no validation clips to find its best epoch with.")
        plan.append({"rows": rows, "valid": valid, "epochs": epochs, "steps": min(steps, most) if most else steps})
    return plan


def _validation_rows(hparams, data, t):
    """What a learner at task `t` may look at: earlier tasks' clips only if it keeps some of theirs to train on."""
    rows, keep, seed = data.split("valid"), hparams["replay_num_keep"], hparams["seed"]
    return current_and_replay(rows, t, 0, seed) if parse_keep(keep) == 0 else seen(rows, t, keep, seed)


@main_only
def save_rows(save_folder, data):
    """Write each task's clips to ``{split}_task{t}_raw.csv``, for the reader of a result and for the notebook."""
    os.makedirs(save_folder, exist_ok=True)
    for (split, task), rows in data.rows.groupby(["split", "task"]):
        write_atomically(os.path.join(save_folder, f"{split}_task{task}_raw.csv"), rows.to_csv(index=False))


def train_tasks(brain_class, hparams, run_opts, data, plan, modules, after_task=None):
    """Train an encoder on one task after the other.

    A finished task is left as it is, a task that was interrupted goes on from its last checkpoint. A checkpoint that is
    damaged is not used: its task goes on from the one before, or is trained again from the task before, which gives the
    same bits; so the tasks after it stay.

    Parameters
    ----------
    brain_class : type
        A subclass of `utils.training.brain.TaskBrain`.
    hparams : dict
        The loaded YAML.
    run_opts : speechbrain.utils.run_opts.RunOptions
    data : datasets.prepare.Data
    plan : list of dict
        As `plan_tasks` returns it.
    modules : dict of str to torch.nn.Module
        With the weights from which task 0 starts.
    after_task : callable, optional
        Called with (task, folder of its checkpoint) when a task is trained, also if an earlier start did it.
    """
    keep_freed_memory()
    save_rows(hparams["save_folder"], data)
    folders = [os.path.join(hparams["save_folder"], f"task{t}") for t in range(data.n_tasks)]
    names = data.task_names()
    with RunProgress(hparams, run_opts, plan) as progress:
        for t, step in enumerate(plan):
            main_only(set_aside_damaged)(folders[t])
            if ddp_broadcast(is_finished(folders[t])):
                progress.skip(t)
            else:
                if t > 0:  # what process 0 loads, DDP gives to the others, who may not see the files yet
                    handed_on = {name: module for name, module in modules.items() if name in HEADS_AND_ENCODER}
                    main_only(load_weights)(folders[t - 1], handed_on)
                begun = monotonic()
                train_one_task(brain_class, hparams, run_opts, data, modules, t, step, folders[t], progress)
                progress.task_done(t, names[t], monotonic() - begun)
            sweep_replaced(folders[t])
            if after_task is not None:
                after_task(t, folders[t])
    _draw_training(hparams)


@main_only
def _draw_training(hparams):
    figure, log = (os.path.join(hparams["output_folder"], name) for name in ("training.png", "train_log.csv"))
    if os.path.isfile(log) and not os.path.isfile(figure):
        plot_training(log, figure)
    logger.info("Weights after each task: %s. Losses: %s.", hparams["save_folder"], figure)


def train_one_task(brain_class, hparams, run_opts, data, modules, t, step, folder, progress):
    """Train task `t` with a fresh optimizer, schedule and epoch counter; its checkpoints go to `folder`."""
    dataset = _views(hparams, data, t, step["rows"], brain_class.n_views)
    sampler = EpochSampler(len(dataset), hparams["seed"], t, hparams["batch_size"], rank(), world_size())
    counter = EpochCounter(step["epochs"])
    recoverables = {name: module for name, module in modules.items() if name in HEADS_AND_ENCODER}
    best = BestEpoch(dict(recoverables)) if len(step["valid"]) else None
    recoverables |= {"counter": counter, **({"best": best} if best else {})}
    total, warmup = step["epochs"] * step["steps"], min(hparams["warmup_epochs"], step["epochs"] - 1) * step["steps"]
    context = TaskContext(
        index=t,
        epochs=step["epochs"],
        steps_per_epoch=step["steps"],
        seed=hparams["seed"],
        schedule=WarmupCosineScheduler(hparams["lr"], hparams["final_lr"], total, warmup),
        counter=counter,
        clip_names=data.store.paths,
        on_step=progress.step,
        on_epoch=progress.epoch,
        best=best,
    )
    brain = brain_class(
        task=context,
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=AtomicCheckpointer(folder, recoverables),
    )
    brain.train_sampler = sampler  # SpeechBrain tells the epoch to this one only
    loader = make_dataloader(  # not the Brain's, which would share out among the processes what is shared out already
        dataset,
        batch_size=hparams["batch_size"] // world_size(),
        num_workers=hparams["num_workers"],
        sampler=sampler,
        collate_fn=PaddedBatch,
        pin_memory=torch.device(brain.device).type == "cuda",
        worker_init_fn=quiet_worker,
    )
    brain.checkpointer.add_recoverable("dataloader-TRAIN", loader)
    valid = _valid_loader(hparams, data, step["valid"])
    costs = training_costs(hparams["output_folder"], brain.device)
    with stop_signals.deferred(), costs as context.save_costs, workers_ended(loader, valid):
        brain.fit(counter, loader, valid, progressbar=False)


@contextlib.contextmanager
def workers_ended(*loaders):
    """End the loaders' worker processes on leaving, by an error too: its traceback keeps their iterators alive, so they
    would be waited for while Python exits.

    Parameters
    ----------
    *loaders : speechbrain.dataio.dataloader.SaveableDataLoader or None
    """
    try:
        yield
    finally:
        for loader in filter(None, loaders):
            if hasattr(loader._speechbrain_iterator, "_shutdown_workers"):  # it has none with num_workers=0
                loader._speechbrain_iterator._shutdown_workers()


def _views(hparams, data, t, rows, n_views):
    """The training views of task `t`."""
    mixup = make_mixup(hparams["use_mixup"], hparams["mixup_alpha"])
    crop_samples = round(hparams["train_duration"] * hparams["sample_rate"])
    return ViewDataset(rows, data.store, crop_samples, len(data.classes), mixup, hparams["seed"], t, n_views)


def _valid_loader(hparams, data, rows):
    """Whole validation clips, none padded, each in one process; None if there are none."""
    if rows.empty:
        return None
    clips = WholeClips(rows, data.store)
    batches = clips.batches(hparams["batch_size"])[rank() :: world_size()]
    how = {"num_workers": hparams["num_workers"], "collate_fn": PaddedBatch, "worker_init_fn": quiet_worker}
    return SaveableDataLoader(clips, batch_sampler=batches, **how)
