"""One more pass over a task's clips after its last epoch, and batch norm's statistics from it."""

import contextlib

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch.nn.modules.batchnorm import _BatchNorm

from datasets.batches import EpochSampler
from utils.run.processes import rank, world_size


def task_batches(brain, sliced):
    """Yield the batches of one more epoch over the task's clips, with a seed set before each.

    Clips, crops and augmentation are drawn as in training, as a function of (seed, task, number of epochs + 1, step).
    So they are the same after a resume.

    Parameters
    ----------
    brain : utils.training.brain.TaskBrain
        Its task has been trained.
    sliced : bool
        Under several processes, each gets its slice of each batch, as in training; else all of it.

    Yields
    ------
    speechbrain.dataio.batch.PaddedBatch
    """
    task, epoch = brain.task, brain.task.epochs + 1
    own, n = (rank(), world_size()) if sliced else (0, 1)
    sampler = EpochSampler(len(task.rows), task.seed, task.index, brain.hparams.batch_size, own, n)
    sampler.set_epoch(epoch)
    views, keys, each = task.views(task.rows), list(sampler), brain.hparams.batch_size // n
    for step in range(task.steps_per_epoch):
        batch = PaddedBatch([views[key] for key in keys[step * each :][:each]])
        entropy = [task.seed, task.index, epoch, step + 1, *([own] if n > 1 else [])]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        yield batch


def batch_norms(module):
    """List a module's batch norms that keep running statistics, SyncBatchNorm included."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def average_anew(norms):
    """Make batch norms take the plain average of the statistics to come; return what restores their momentum.

    Without momentum they weigh batch n by 1/n, so the first replaces what was there, and a norm that sees no batch
    keeps its statistics.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
        norm.num_batches_tracked.zero_()

    def restore():
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    return restore


@contextlib.contextmanager
def train_mode(brain):
    """Put the Brain's modules into train mode, and back into the mode that they were in."""
    was = brain.modules.training
    brain.modules.train()
    try:
        yield
    finally:
        brain.modules.train(was)


@torch.no_grad()
def estimate_batch_norm(brain):
    """Estimate batch norm's running statistics anew, by a pass over the task's clips in train mode.

    Every process sees the whole of each batch, so that their number changes nothing. Costs the forward passes of an
    epoch, or nothing where there is no batch norm.
    """
    norms = batch_norms(brain.modules)
    if not norms:
        return
    restore = average_anew(norms)
    with train_mode(brain):
        for batch in task_batches(brain, sliced=False):
            with brain.training_ctx:
                brain.compute_forward(batch, sb.Stage.TRAIN)
    restore()
