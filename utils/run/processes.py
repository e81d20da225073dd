"""Several processes under torchrun: how they join, who writes, who waits, and what is said once.

The number of processes changes how fast a run is, not what it is: `batch_size` is the joint batch, of which every
process trains on its contiguous slice (see `datasets.batches.EpochSampler`), and DistributedDataParallel averages the
gradients. So the losses of equal slices average to that of the joint batch; NT-Xent, which looks across the batch,
gathers it (see `models.losses`). Legend: b clips of a process's slice, S samples.
"""

import datetime
import functools
import itertools
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from speechbrain.utils.distributed import MainProcessContext, ddp_prevent_block, infer_device
from torch.distributed.rendezvous import rendezvous

from utils.io.errors import InputError

TIMEOUT = 600  # seconds that a process waits for the others within a step, before it gives the run up
POLL = 0.05  # seconds between two looks at whether process 0 is done
_turns = itertools.count()  # of what process 0 does for all: every process counts the same ones


def launched():
    """Whether torchrun has started this process; by the same signs as SpeechBrain's Brain."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def world_size():
    """How many processes work on this run."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank():
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def one_process_only(script):
    """Refuse torchrun for a script that has nothing to share out.

    Raises
    ------
    InputError
        torchrun has started this process.
    """
    if launched():
        raise InputError(f"{script} works in one process: start it with python, without torchrun.")


def join_processes(run_opts):
    """Join the other processes, if torchrun has started this one: by NCCL, each on a GPU of its own, or gloo on CPUs.

    SpeechBrain's `ddp_init_group` takes NCCL also where there is no GPU, and waits two hours for a process that hangs.

    Parameters
    ----------
    run_opts : speechbrain.utils.run_opts.RunOptions
        Uses `device` and, on GPUs, `distributed_backend`.

    Raises
    ------
    InputError
        Too few GPUs, or one GPU for all.
    """
    if not launched():
        return
    if run_opts.device not in (None, "cpu"):
        raise InputError(f"--device={run_opts.device} under torchrun: leave it out, so that each process takes a GPU.")
    backend, device = "gloo", torch.device(run_opts.device or infer_device())
    if device.type == "cuda":
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise InputError(f"{here} processes on a node with {gpus} GPUs: set --nproc_per_node={gpus}.")
        torch.cuda.set_device(device)
        backend = run_opts.distributed_backend
    timeout = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group(backend, timeout=timeout, store=_store(), rank=rank(), world_size=world_size())


def leave_processes():
    """End the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@functools.cache
def _store():
    """The key-value store that all processes of this start share."""
    return next(rendezvous("env://", timeout=datetime.timedelta(seconds=TIMEOUT)))[0]


def speaks_first():
    """Whether no other process has ended with a message yet: all find the same fault, and it is said once."""
    try:
        return world_size() == 1 or _store().add("last words", 1) == 1
    except RuntimeError:  # the store is gone with the process that kept it: better said twice than not at all
        return True


def is_lost_process(error):
    """Whether an error means that another process has ended, or has not answered within `TIMEOUT`."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


# What process 0 does for all


def main_only(function):
    """Have process 0 alone call a function, and the others wait for it, however long it takes.

    What process 0 raises as InputError, all raise. SpeechBrain's `main_process_only` is for what is done quickly: there
    the others wait in a collective, for at most `TIMEOUT`.

    Returns
    -------
    callable
        Returns None in the other processes.
    """
    return _led_by_main(function, lambda *args, **kwargs: None)


def main_first(function):
    """Have process 0 call a function and then, once it is done, all others: they find what it has made."""
    return _led_by_main(function, function)


def _led_by_main(function, follow):
    @functools.wraps(function)
    def led(*args, **kwargs):
        if ddp_prevent_block():  # one process, or within such a function already
            return function(*args, **kwargs)
        key = f"turn {next(_turns)}"
        if rank() > 0:
            _wait_for(key)
            return follow(*args, **kwargs)
        try:
            with MainProcessContext():
                result = function(*args, **kwargs)
        except InputError as error:
            _store().set(key, str(error))
            raise
        _store().set(key, "")
        return result

    return led


def _wait_for(key):
    """Wait until process 0 has set the key. Not in the store's own `wait`, which Ctrl-C doesn't reach."""
    while not _store().check([key]):
        time.sleep(POLL)
    said = _store().get(key).decode()
    if said:
        raise InputError(said)


# Sums over all processes


def total(*values):
    """The sums of numbers over all processes."""
    if not dist.is_initialized():
        return values
    sums = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(sums)
    return sums.tolist()


def mean(value, weight):
    """The mean of a number over all processes, each with its weight."""
    if not dist.is_initialized():
        return value
    weighted, weights = total(value * weight, weight)
    return weighted / weights


def rows_of_all(rows):
    """The rows [b, D] of all processes, equally many from each, on the CPU and without gradient."""
    if not dist.is_initialized():
        return rows
    rows = rows.to("cuda" if dist.get_backend() == "nccl" else "cpu").contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts).cpu()


def joint_loss(loss):
    """A loss with the value it has over all processes and the gradient of this one, which DDP averages."""
    if not dist.is_initialized():
        return loss
    value = loss.detach().clone()
    dist.all_reduce(value)
    return loss + (value / dist.get_world_size() - loss.detach())


def pad_as_joint(wav, lengths):
    """Pad a slice as its joint batch is padded, so that an encoder that sees the padding sees the same.

    Parameters
    ----------
    wav : torch.Tensor
        [b, S], padded to the slice's longest clip.
    lengths : torch.Tensor
        [b], relative to that.

    Returns
    -------
    wav : torch.Tensor
        [b, S of the joint batch's longest].
    lengths : torch.Tensor
        [b], relative to that.
    """
    if not dist.is_initialized():
        return wav, lengths
    own, longest = wav.shape[1], torch.tensor(wav.shape[1], device=wav.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    longest = int(longest)
    return F.pad(wav, (0, longest - own)), (lengths * own).round() / longest


def share_buffers(module):
    """Give all processes process 0's buffers: batch norm's running statistics, where each process has its own."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
