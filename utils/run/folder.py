"""Run folders: compare a run's settings with those in its folder, refuse another run's folder, lock the folder."""

import io
import json
import logging
import os
import re
import shutil
from pathlib import Path

import ruamel.yaml
from hyperpyyaml import resolve_references

from datasets.tasks import lost_tasks
from utils.io.errors import InputError
from utils.io.files import REMEDIES, write_atomically
from utils.io.locks import Busy, FolderLock
from utils.run.config import effective_option
from utils.run.keys import ANY, KEYS
from utils.run.processes import main_only

logger = logging.getLogger(__name__)

HARMLESS_OPTIONS = {"noprogressbar", "device", "log_config", "param_file", "debug_persistently", "ckpt_interval_steps"}
HARMLESS_OPTIONS |= {"ckpt_interval_minutes", "tqdm_colored_bar", "tqdm_barcolor", "overridden_args"}
HARMLESS_OPTIONS |= {"distributed_backend", "find_unused_parameters"}
COMMENT = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:''|[^'])*')|(?:^|\s+)#.*$""")  # a comment, or quoted text as group 1
_locks = []  # locks are held until the process ends


def is_harmless(key):
    """Tell whether a setting changes only where a run's files are or how fast it runs, never its result."""
    return key in KEYS and KEYS[key].harmless


def as_text(text, overrides):
    """Return each key of a YAML as text, with references resolved and without comments."""
    yaml = ruamel.yaml.YAML()
    found = {}
    for key, value in yaml.load(resolve_references(text, overrides).getvalue()).items():
        out = io.StringIO()
        yaml.dump({key: value}, out)
        lines = [COMMENT.sub(r"\1", line) for line in out.getvalue().splitlines()]
        found[key] = "\n".join(filter(None, lines)).partition(":")[2].strip()
    return found


def run_settings(text, overrides, run_opts, hparams):
    """Return all settings that a run's result depends on: the resolved YAML and the run options that were given.

    Parameters
    ----------
    text : str
        The YAML.
    overrides : str
    run_opts : speechbrain.utils.run_opts.RunOptions
    hparams : dict
        What was built from them.

    Returns
    -------
    dict of str to str
    """
    settings = {k: v for k, v in as_text(text, overrides).items() if not is_harmless(k) and not k.startswith("__")}
    for key in {"ssl_checkpoints_dir", "pretrained_weights"} & settings.keys():
        settings[key] = os.path.realpath(hparams[key]) if hparams[key] else "null"
    if "task_classes" in hparams and not callable(hparams["task_classes"]):  # one form for all ways to write it
        settings["task_classes"] = json.dumps(hparams["task_classes"])
    for option in sorted(run_opts.overridden_args - HARMLESS_OPTIONS):
        settings[option] = str(run_opts[option])
    settings["precision"] = effective_option("precision", hparams, run_opts)
    return settings


@main_only
def check_run_folder(folder, settings, overwrite=False):
    """Raise the errors of `open_run_folder`, before anything is written.

    Parameters
    ----------
    folder : str
        The run folder.
    settings : dict of str to str
        As `run_settings` returns them.
    overwrite : bool
        An earlier run in the folder is going to be deleted, so its settings don't matter.

    Raises
    ------
    InputError
        The folder belongs to another run, holds other files, is in use by another process, or can't be written.
    """
    parent = os.path.abspath(folder)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        what = "can't be written" if os.path.isdir(parent) else "is no folder"
        raise InputError(f"Can't write to {folder}: {parent} {what}. Set output_base to another folder.")
    others = _contents(folder)
    saved = read_settings(os.path.join(folder, "settings.json")) if "settings.json" in others else {}
    if others and not {"seed", "precision"} <= saved.keys():  # never delete a folder that may not be a run
        raise InputError(f"{folder} holds files of something else ({others[0]}): set experiment_name or output_base.")
    if os.path.exists(os.path.join(folder, ".lock")):
        _hold(folder)
    if others and not overwrite:
        _refuse_other_run(folder, saved, settings)


@main_only
def open_run_folder(folder, settings, overwrite=False):
    """Make the run's folder, or open that of an earlier start, and lock it for this process.

    Parameters and errors are those of `check_run_folder`; `overwrite` deletes an earlier run's files.
    """
    check_run_folder(folder, settings, overwrite)
    try:
        os.makedirs(folder, exist_ok=True)
        _hold(folder)
        check_run_folder(folder, settings, overwrite)  # another process may have used the folder before the lock
        for leftover in (*Path(folder).glob(".*.tmp"), *Path(folder).glob("save/.*.tmp")):
            leftover.unlink()  # left where a crash interrupted `write_atomically`
        for name in sorted(_contents(folder), key="settings.json".__eq__) if overwrite else ():  # settings.json last
            full = os.path.join(folder, name)
            shutil.rmtree(full) if os.path.isdir(full) and not os.path.islink(full) else os.remove(full)
        write_atomically(os.path.join(folder, "settings.json"), json.dumps(settings, indent=1))
    except OSError as error:
        remedy = REMEDIES.get(error.errno, "set output_base to another folder")
        raise InputError(f"Can't write to {folder} ({error.strerror}): {remedy}.") from error


def _contents(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith(".")) if os.path.isdir(folder) else []


def _hold(folder):
    """Lock the folder until this process ends; raise InputError if another process has locked it."""
    lock = FolderLock(folder)
    if lock.path in (held.path for held in _locks):
        return
    try:
        lock.acquire()
    except Busy as other:
        what = f"Another process is working in {folder} ({other})"
        raise InputError(f"{what}: wait for it, or set experiment_name.") from None
    if lock.why_open:
        logger.warning("%s can't be locked, as %s: start no other run there meanwhile.", folder, lock.why_open)
    _locks.append(lock)


def read_settings(path):
    """Read a JSON file of a run that holds a dict; raise InputError if it is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if isinstance(content, dict):
            return content
        reason = "it holds no settings"
    except (ValueError, OSError, RecursionError) as error:
        reason = error
    raise InputError(f"{path} is damaged ({reason}): delete that run's folder, or set experiment_name.")


def same_setting(one, other):
    """Tell whether two settings are equal, as text or as numbers: 1 equals 1.0."""
    try:
        return one == other or float(one) == float(other)
    except (TypeError, ValueError, OverflowError):
        return False


def same_yaml(one, other):
    """Tell whether two settings are the same YAML, in whatever style it is written."""

    def in_blocks(text):
        yaml, out = ruamel.yaml.YAML(), io.StringIO()
        indent = "" if text.startswith("- ") else "  "  # what `as_text` has taken from the first line
        node = yaml.load(f"key:\n{indent}{text}")
        nodes = [node]
        while nodes:
            part = nodes.pop()
            if isinstance(part, dict | list):
                part.fa.set_block_style()
                nodes += part.values() if isinstance(part, dict) else part
        yaml.dump(node, out)
        return out.getvalue()

    try:
        return isinstance(one, str) and isinstance(other, str) and in_blocks(one) == in_blocks(other)
    except (ruamel.yaml.YAMLError, ValueError, AttributeError):
        return False


def _differs(key, saved, settings):
    """Tell whether a setting differs from that of the run in the folder."""
    moved = saved.get("encoders", "") == settings.get("encoders")  # the same encoders; their folder may have moved
    if key == "encoders" or key == "ssl_checkpoints_dir" and moved:
        return False
    if is_harmless(key) or key not in saved and key in KEYS and KEYS[key].before is ANY:
        return False
    if key == "task_classes" and _lost_tasks(saved, settings) is not None:
        return bool(_lost_tasks(saved, settings))
    there, here = saved.get(key, KEYS[key].before if key in KEYS else None), settings.get(key)
    if key in KEYS:
        there, here = (KEYS[key].once.get(value, value) for value in (there, here))
    if key == "ssl_checkpoints_dir":  # a run folder and its save folder name the same encoders
        there, here = (str(path).removesuffix("/save") for path in (there, here))
    return not same_setting(there, here) and not same_yaml(there, here)


def _lost_tasks(saved, settings):
    """Say how the tasks differ from the saved ones with more at the end; None where a function makes either's."""
    try:
        before, now = (json.loads(all_settings["task_classes"]) for all_settings in (saved, settings))
        return lost_tasks(before, now)
    except (KeyError, TypeError, ValueError):  # no such key, or no lists
        return None


def _refuse_other_run(folder, saved, settings):
    differing = [key for key in sorted({*saved, *settings}) if _differs(key, saved, settings)]
    if differing:
        said = {key: f"{saved.get(key, 'unset')} there, {settings.get(key, 'unset')} now" for key in differing}
        if "task_classes" in said:
            said["task_classes"] = _lost_tasks(saved, settings) or said["task_classes"]
        what = "; ".join(f"{key}: {text}" for key, text in said.items())
        raise InputError(
            f"{folder} is a run of other settings ({' '.join(what.split())}). "
            "Set experiment_name, or start it afresh with --overwrite=True."
        )
