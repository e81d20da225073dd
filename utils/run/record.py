"""What a reader of the numbers needs to know of a run: command, versions, commit, hardware, data."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version

import torch
from speechbrain.utils.distributed import infer_device

from utils.io.files import write_atomically
from utils.run.exits import early_messages
from utils.run.hardware import device_name
from utils.run.processes import main_only


@main_only
def save_versions(folder, run_opts, data, argv=None):
    """Write what a reader of the numbers needs to know: command, versions, commit, hardware, data. No environment.

    What was logged before there was a run folder goes to its log.txt.

    Parameters
    ----------
    folder : str
        The run folder.
    run_opts : speechbrain.utils.run_opts.RunOptions
    data : datasets.prepare.Data
    argv : list of str, optional
        Arguments without the script's name, instead of the process's.
    """
    names = ("torch", "torchaudio", "speechbrain", "numpy", "soundfile", "soxr", "torchmetrics", "HyperPyYAML")
    here = os.path.dirname(os.path.abspath(__file__))
    commit = ""
    if shutil.which("git"):
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
        commit = git.stdout.strip()
    record = {
        "command": [os.path.basename(sys.argv[0]), *(sys.argv[1:] if argv is None else argv)],
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device_name(run_opts.device or infer_device()),
        "threads": torch.get_num_threads(),
        "data": data.fingerprint(),
        **{name: version(name) for name in names},
    }
    write_atomically(os.path.join(folder, "versions.json"), json.dumps(record, indent=1))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # log.txt, if SpeechBrain has opened it
            for early in early_messages.buffer:
                handler.handle(early)
    early_messages.buffer.clear()
