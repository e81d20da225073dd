"""What a run costs, in its folder's ``costs.json``: seconds and peak memory, over all its starts.

Of a trainer it is the encoder's training, of linclf_train.py the embedding and the training of its classifiers.
"""

import contextlib
import json
import logging
import math
import re
import resource
import sys
from pathlib import Path
from time import monotonic

import torch

from utils.io.files import write_atomically
from utils.run.processes import rank, world_size

logger = logging.getLogger(__name__)

FILE = "costs.json"


@contextlib.contextmanager
def training_costs(run_folder, device):
    """Add the cost of what is trained inside to the run folder's, also when it is interrupted.

    A run that was stopped and started again has the seconds of all its starts, and the highest of their peaks.

    Parameters
    ----------
    run_folder : str or Path
        The trainer's.
    device : str or torch.device
        What it trains on. On CUDA memory is what this process's tensors took there, otherwise the process's resident
        set; either way the highest since the process began. Of several processes, process 0's.

    Yields
    ------
    callable
        Writes the costs so far. A process that is killed writes nothing more, so what it cost is known up to the last
        call: after each epoch is a good time.
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


def read_costs(run_folder):
    """What a run's training has cost so far.

    Parameters
    ----------
    run_folder : str or Path
        A trainer's.

    Returns
    -------
    dict or None
        ``train_seconds`` (wall clock, all starts), ``peak_memory_bytes`` (the highest of all starts) and ``device``
        (the last start's); None if the folder has no record, or, with a warning, a damaged one.
    """
    path = Path(run_folder) / FILE
    if not path.is_file():
        return None
    try:
        costs = json.loads(path.read_text(encoding="utf-8"))
        seconds, peak = costs["train_seconds"], costs["peak_memory_bytes"]
        if math.isfinite(seconds) and seconds >= 0 and math.isfinite(peak) and peak >= 0 and costs["device"]:
            return costs
        reason = "no costs in it"
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = error
    logger.warning("%s is damaged (%s): the cost of training until now is not known.", path, reason)
    return None


def peak_memory(device):
    """Bytes at most, since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux hands ru_maxrss on to a child through exec: there it may be that of the shell or sweep that started us.
    status = Path("/proc/self/status")
    own = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    if own:
        return 1024 * int(own[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
