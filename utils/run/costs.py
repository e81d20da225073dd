"""Write the seconds and the peak memory of a run to its folder's ``costs.json``, over all its starts.

A trainer counts the encoder's training; linclf_train.py counts the embedding and the training of its classifiers.
"""

import contextlib
import json
import logging
import math
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import torch

from utils.io.files import write_atomically
from utils.run.processes import rank, world_size

logger = logging.getLogger(__name__)

FILE = "costs.json"


@contextlib.contextmanager
def training_costs(run_folder: str | Path, device: str | torch.device) -> Iterator[Callable[[], None]]:
    """Add the costs of the ``with`` block to those of the run folder, also when the block is interrupted.

    A run that was stopped and started again has the sum of the seconds of its starts, and the highest of their peaks.

    Parameters
    ----------
    run_folder
        Of the run.
    device
        Where the block trains. On CUDA, memory is that of this process's tensors on the GPU, otherwise the process's
        resident set; either way the peak since the process began. With several processes, rank 0 is measured.

    Yields
    ------
    callable
        Writes the costs so far. Call it after each epoch: a killed process writes nothing more, so only the costs up to
        the last call are known.
    """
    before = read_costs(run_folder) or {"train_seconds": 0.0, "peak_memory_bytes": 0}
    device = torch.device(device)
    begun = monotonic()
    times = f"{world_size()} x " if world_size() > 1 else ""

    def save():
        if rank() > 0:
            return
        costs = {
            "train_seconds": before["train_seconds"] + monotonic() - begun,
            "peak_memory_bytes": max(before["peak_memory_bytes"], peak_memory(device)),
            "device": times + (torch.cuda.get_device_name(device) if device.type == "cuda" else device.type),
        }
        write_atomically(Path(run_folder) / FILE, json.dumps(costs, indent=1))

    try:
        yield save
    finally:
        save()


def read_costs(run_folder: str | Path) -> dict | None:
    """Read the costs of a run so far.

    Returns
    -------
    dict or None
        ``train_seconds`` (wall clock, sum of all starts), ``peak_memory_bytes`` (maximum of all starts) and ``device``
        (of the last start). None if the folder has no costs.json, or, with a warning, a damaged one.
    """
    path = Path(run_folder) / FILE
    if not path.is_file():
        return None
    try:
        costs = json.loads(path.read_text(encoding="utf-8"))
        seconds, peak = costs["train_seconds"], costs["peak_memory_bytes"]
        if math.isfinite(seconds) and seconds >= 0 and math.isfinite(peak) and peak >= 0 and costs["device"]:
            return costs
        reason = "it holds no costs"
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = error
    logger.warning("%s is damaged (%s): the cost of training until now is not known.", path, reason)
    return None


def peak_memory(device: torch.device) -> int:
    """Return the peak memory since the process began, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # A child inherits ru_maxrss through exec on Linux, so it may be that of the shell that started this process.
    status = Path("/proc/self/status")
    own = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    if own:
        return 1024 * int(own[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
