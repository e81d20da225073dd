"""Run folders: how a run is found again, the refusal of a different one, and the encoders that runs have saved."""

import io
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from datasets.errors import InputError
from utils.checkpoints import latest_checkpoint
from utils.config import early_messages, effective_option
from utils.distributed import main_only
from utils.files import REMEDIES, write_atomically
from utils.hardware import device_name

import ruamel.yaml
import torch
from filelock import FileLock, Timeout
from hyperpyyaml import resolve_references
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.distributed import infer_device

logger = logging.getLogger(__name__)

# Settings that change where a run's files are or how fast it goes, never its result.
HARMLESS = {"output_base", "output_folder", "save_folder", "store_folder", "overwrite", "num_workers", "ckpt_overhead"}
HARMLESS |= {"extra_logger"}
HARMLESS_OPTIONS = {"noprogressbar", "device", "log_config", "param_file", "debug_persistently", "ckpt_interval_steps"}
HARMLESS_OPTIONS |= {"ckpt_interval_minutes", "tqdm_colored_bar", "tqdm_barcolor", "overridden_args"}
HARMLESS_OPTIONS |= {"distributed_backend", "find_unused_parameters"}
# What an encoder was trained with and must be judged with.
ENCODER_KEYS = ("encoder", "emb_dim", "emb_norm_type", "sample_rate", "n_mels", "front_end", "mean_norm",
                "compute_features", "mean_var_norm")  # fmt: skip
LOG_CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "log_config.yaml")
_locks = []  # kept until the process ends


def run_settings(hparams_file, overrides, run_opts, hparams):
    """What decides a run's result, as text by key: the resolved YAML and the run options that were given.

    Returns
    -------
    dict of str to str
    """
    with open(hparams_file, encoding="utf-8") as file:
        resolved = resolve_references(file, overrides).getvalue()
    yaml = ruamel.yaml.YAML()
    settings = {}
    for key, value in yaml.load(resolved).items():
        if key not in HARMLESS and not key.startswith("__"):
            out = io.StringIO()
            yaml.dump({key: value}, out)
            lines = [re.sub(r"(^|\s+)#.*$", "", line) for line in out.getvalue().splitlines()]  # no comments
            settings[key] = "\n".join(filter(None, lines)).partition(":")[2].strip()
    for key in {"data_folder", "ssl_checkpoints_dir", "pretrained_weights"} & settings.keys():
        settings[key] = os.path.realpath(hparams[key]) if hparams[key] else "null"
    if "task_classes" in hparams and not callable(hparams["task_classes"]):  # however it was written
        settings["task_classes"] = json.dumps(hparams["task_classes"])
    for option in sorted(run_opts.overridden_args - HARMLESS_OPTIONS):
        settings[option] = str(run_opts[option])
    settings["precision"] = effective_option("precision", hparams, run_opts)
    return settings


@main_only
def check_run_folder(folder, settings, overwrite=False):
    """Refuse what `open_run_folder` would refuse, before anything is written.

    Parameters
    ----------
    folder : str
        The run folder.
    settings : dict of str to str
        As `run_settings` returns them.
    overwrite : bool
        Whether an earlier run there is to be deleted.

    Raises
    ------
    InputError
        Another run's folder, a folder of something else, one that another process works in, or no right to write.
    """
    parent = os.path.abspath(folder)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        what = "can't be written" if os.path.isdir(parent) else "is no folder"
        raise InputError(f"Can't write to {folder}: {parent} {what}. Set output_base to another folder.")
    others = _contents(folder)
    saved = _read_json(os.path.join(folder, "settings.json")) if "settings.json" in others else {}
    if others and not {"seed", "precision"} <= saved.keys():  # never delete what may be no run of ours
        raise InputError(f"{folder} holds files of something else ({others[0]}): set experiment_name or output_base.")
    if os.path.exists(os.path.join(folder, ".lock")):
        _hold(folder)
    if others and not overwrite:
        _refuse_other_run(folder, saved, settings)


@main_only
def open_run_folder(folder, settings, overwrite=False):
    """Make the run's folder, or find it as a run of the same settings left it, and hold it for this process.

    Parameters and errors are those of `check_run_folder`; `overwrite` deletes what an earlier run left there.
    """
    check_run_folder(folder, settings, overwrite)
    try:
        os.makedirs(folder, exist_ok=True)
        _hold(folder)
        check_run_folder(folder, settings, overwrite)  # another process may have been here in between
        for leftover in (*Path(folder).glob(".*.tmp"), *Path(folder).glob("save/.*.tmp")):
            leftover.unlink()  # what a death has kept `write_atomically` from putting in place
        for name in sorted(_contents(folder), key="settings.json".__eq__) if overwrite else ():  # that one last
            full = os.path.join(folder, name)
            shutil.rmtree(full) if os.path.isdir(full) and not os.path.islink(full) else os.remove(full)
        write_atomically(os.path.join(folder, "settings.json"), json.dumps(settings, indent=1))
    except OSError as error:
        remedy = REMEDIES.get(error.errno, "set output_base to another folder")
        raise InputError(f"Can't write to {folder} ({error.strerror}): {remedy}.") from error


def _contents(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith(".")) if os.path.isdir(folder) else []


def _hold(folder):
    """Lock the folder until this process ends."""
    path = os.path.join(os.path.realpath(folder), ".lock")
    if any(lock.lock_file == path and lock.is_locked for lock in _locks):
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"Another process is working in {folder}: wait for it, or set experiment_name.") from None
    _locks.append(lock)


def _read_json(path):
    """The object in a file that a run has written."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if isinstance(content, dict):
            return content
        reason = "it holds no settings"
    except (ValueError, OSError, RecursionError) as error:
        reason = error
    raise InputError(f"{path} is damaged ({reason}): delete that run's folder, or set experiment_name.")


def _same(one, other):
    """Whether two settings are equal: 1 is 1.0."""
    try:
        return one == other or float(one) == float(other)
    except (TypeError, ValueError, OverflowError):
        return False


def _refuse_other_run(folder, saved, settings):
    differing = [k for k in sorted({*saved, *settings}) if not _same(saved.get(k), settings.get(k))]
    if differing:
        what = "; ".join(f"{k}: {saved.get(k, 'unset')} there, {settings.get(k, 'unset')} now" for k in differing)
        raise InputError(
            f"{folder} is a run of other settings ({' '.join(what.split())}). "
            "Set experiment_name, or start it afresh with --overwrite=True."
        )


@main_only
def save_versions(hparams, run_opts, data, argv=None):
    """Write what a reader of the numbers needs to know: command, versions, commit, hardware, data. No environment.

    What was logged before there was a run folder goes to its log.txt.

    Parameters
    ----------
    hparams : dict
        Uses `output_folder`.
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
    write_atomically(os.path.join(hparams["output_folder"], "versions.json"), json.dumps(record, indent=1))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # log.txt, if SpeechBrain has opened it
            for early in early_messages.buffer:
                handler.handle(early)
    early_messages.buffer.clear()


def find_checkpoints(path):
    """Find the task folders of a trained encoder.

    Parameters
    ----------
    path : str
        A ``save`` folder, a run folder, or an output base with one run in it, with or without ``/save`` at its end.

    Returns
    -------
    list of str
        ``save/task0``, ``save/task1``, ... as far as they go without a gap.

    Raises
    ------
    InputError
        Nothing there, or several runs; lists the candidates.
    """
    path = os.path.normpath(path)
    base = os.path.dirname(path) if os.path.basename(path) == "save" else path
    for save in (path, os.path.join(path, "save")):
        if os.path.isdir(os.path.join(save, "task0")):
            return _tasks_of(os.path.abspath(save))
    names = sorted(os.listdir(base or ".")) if os.path.isdir(base or ".") else []
    runs = [n for n in names if os.path.isdir(os.path.join(base, n, "save", "task0"))]
    if len(runs) == 1:
        return _tasks_of(os.path.abspath(os.path.join(base, runs[0], "save")))
    if runs:
        raise InputError(f"{base} holds several runs, name one in ssl_checkpoints_dir: {', '.join(runs)}.")
    raise InputError(f"No checkpoint in {path}: is ssl_checkpoints_dir the encoder's save folder?")


def check_same_encoder(task_folder, settings):
    """Compare an evaluation's architecture and front end with those of the encoder's run.

    Parameters
    ----------
    task_folder : str
        A task's folder of the encoder, in a run folder's ``save``.
    settings : dict of str to str
        The evaluation's, as `run_settings` returns them.

    Returns
    -------
    dict of str to str
        The encoder run's settings; empty if its run folder keeps none.

    Raises
    ------
    InputError
        They differ; names the overrides that mend it.
    """
    path = os.path.join(os.path.dirname(os.path.dirname(task_folder)), "settings.json")
    if not os.path.isfile(path):
        return {}
    trained = _read_json(path)
    differing = [k for k in ENCODER_KEYS if k in trained and k in settings and not _same(trained[k], settings[k])]
    if differing:
        flags = " ".join(f"--{k}={trained[k]}" for k in differing if "\n" not in str(trained[k]))
        mend = f"add {flags}" if flags else f"copy its {', '.join(differing)} into this YAML"
        raise InputError(f"{task_folder} was trained with another encoder or front end: {mend}.")
    return trained


def _tasks_of(save):
    """The task folders up to the first without a checkpoint, or with one from the middle of its training."""
    folders = []
    while True:
        folder = os.path.join(save, f"task{len(folders)}")
        _, meta = latest_checkpoint(folder) or (None, None)
        if meta is None or not meta.get("finished", not {"epoch", INTRA_EPOCH_CKPT_FLAG} & meta.keys()):
            break
        folders.append(folder)
    if meta is not None:
        logger.warning("%s is not trained to its end, and is left out.", folder)
    if not folders:
        raise InputError(f"No checkpoint of a finished task in {save}: has the encoder's training ended?")
    return folders
