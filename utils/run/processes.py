"""Run in several processes under torchrun: join them, let rank 0 write, and sum over all.

The number of processes changes a run's speed, not its result. `batch_size` is that of the joint batch, of which every
process trains on a contiguous slice (see `datasets.batches.EpochSampler`). DistributedDataParallel averages the
gradients, so the losses of equal slices average to the loss of the joint batch. NT-Xent compares all clips of a batch,
so it gathers the joint batch (see `models.losses`). Legend: b clips of a process's slice, S samples, D features.
"""

import datetime
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from speechbrain.utils.distributed import MainProcessContext, ddp_prevent_block, infer_device
from speechbrain.utils.run_opts import RunOptions
from torch.distributed.rendezvous import rendezvous

from utils.io.errors import InputError

TIMEOUT = 600  # seconds that a process waits for the others in a collective before it ends the run
POLL = 0.05  # seconds between two checks whether rank 0 is done
_turns = itertools.count()  # number of the next call that rank 0 leads; the same in every process


def launched() -> bool:
    """Tell whether torchrun has started this process, by the same variables as SpeechBrain's Brain."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def world_size() -> int:
    """Return the number of processes of this run."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def join_processes(run_opts: RunOptions):
    """Join the process group if torchrun has started this process: NCCL with one GPU per process, or gloo on CPUs.

    SpeechBrain's `ddp_init_group` uses NCCL even without a GPU, and waits two hours for a process that hangs.

    Parameters
    ----------
    run_opts
        Uses `device` and, on GPUs, `distributed_backend`.

    Raises
    ------
    InputError
        Fewer GPUs than processes, or a device that all processes would share.
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
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@functools.cache
def _store():
    """Open the key-value store that all processes of this start share."""
    return next(rendezvous("env://", timeout=datetime.timedelta(seconds=TIMEOUT)))[0]


def speaks_first() -> bool:
    """Tell whether this process is the first to end with a message: a fault that all find is reported once."""
    try:
        return world_size() == 1 or _store().add("last words", 1) == 1
    except RuntimeError:  # the process that hosts the store has ended: a repeated message is better than none
        return True


def is_lost_process(error: Exception) -> bool:
    """Tell whether an error means that another process has ended or has not answered within `TIMEOUT`."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


# Calls that rank 0 leads


def main_only(function: Callable) -> Callable:
    """Make rank 0 alone call a function, while the others wait for it, however long it takes.

    An InputError of rank 0 is raised in all processes. The other ranks return None. SpeechBrain's `main_process_only`
    suits quick functions only: there the others wait in a collective, for at most `TIMEOUT`.
    """
    return _led_by_main(function, lambda *args, **kwargs: None)


def main_first(function: Callable) -> Callable:
    """Make rank 0 call a function first, and the others after it, when the files that it makes are there."""
    return _led_by_main(function, function)


def _led_by_main(function, follow):
    @functools.wraps(function)
    def led(*args, **kwargs):
        if ddp_prevent_block():  # one process, or a call within a led call
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
    """Wait until rank 0 has set the key, and raise its error. Ctrl-C can't interrupt the store's own `wait`."""
    while not _store().check([key]):
        time.sleep(POLL)
    said = _store().get(key).decode()
    if said:
        raise InputError(said)


def wait_for_all(what: str):
    """Wait until all processes have come here, however long it takes; `what` names the place, once in a run."""
    if not launched():
        return
    _store().add(what, 1)
    while _store().add(what, 0) < world_size():
        time.sleep(POLL)


def go_on_alone():
    """End all processes but rank 0, which waits for the others and goes on as if torchrun had not started it."""
    _store().add("ended", 1)
    if rank() > 0:
        leave_processes()
        sys.exit(0)
    while _store().add("ended", 0) < world_size():
        time.sleep(POLL)
    leave_processes()
    for name in ("RANK", "LOCAL_RANK"):  # by which SpeechBrain and `launched` know
        del os.environ[name]


# Sums over all processes


def total(*values: float) -> Sequence[float]:
    """Sum each number over all processes."""
    if not dist.is_initialized():
        return values
    sums = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(sums)
    return sums.tolist()


def mean(value: float, weight: float) -> float:
    """Average a number over all processes, weighted by each process's weight."""
    if not dist.is_initialized():
        return value
    weighted, weights = total(value * weight, weight)
    return weighted / weights


def rows_of_all(rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows [b, D] of all processes, which must have equally many, on the CPU and without gradient."""
    if not dist.is_initialized():
        return rows
    rows = rows.to("cuda" if dist.get_backend() == "nccl" else "cpu").contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts).cpu()


def average(tensors: Sequence[torch.Tensor]):
    """Average each tensor over all processes, in place, as DDP averages gradients."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def joint_loss(loss: torch.Tensor) -> torch.Tensor:
    """Return a loss whose value is the mean over all processes and whose gradient is this one's, as DDP averages it."""
    if not dist.is_initialized():
        return loss
    value = loss.detach().clone()
    dist.all_reduce(value)
    return loss + (value / dist.get_world_size() - loss.detach())


def pad_as_joint(wav: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad a slice to the length of its joint batch, as the padding may change an encoder's output.

    Parameters
    ----------
    wav
        [b, S], padded to the slice's longest clip.
    lengths
        [b], relative to S.

    Returns
    -------
    tuple
        `wav`, padded to the joint batch's longest clip, and `lengths`, relative to that.
    """
    if not dist.is_initialized():
        return wav, lengths
    own, longest = wav.shape[1], torch.tensor(wav.shape[1], device=wav.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    longest = int(longest)
    return F.pad(wav, (0, longest - own)), (lengths * own).round() / longest


def share_buffers(module: torch.nn.Module):
    """Broadcast rank 0's buffers, since without SyncBatchNorm each process has its own running statistics."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def share_weights(module: torch.nn.Module):
    """Broadcast rank 0's parameters and buffers, in place."""
    if dist.is_initialized():
        for parameter in module.parameters():
            dist.broadcast(parameter.detach(), 0)
    share_buffers(module)
