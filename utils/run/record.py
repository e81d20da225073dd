"""What a reader of the numbers needs to know of a run, and of each of its starts: command, versions, hardware, data."""

import dataclasses
import datetime
import logging
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version

import pandas as pd
import torch
from speechbrain.utils.distributed import infer_device

from datasets.changes import Changes, clip_table, compare, read_clips, write_clips
from datasets.prepare import Data
from datasets.tasks import lost_tasks
from utils.io.errors import InputError
from utils.io.files import read_json, write_json
from utils.run.exits import early_messages
from utils.run.folder import read_settings
from utils.run.hardware import device_name
from utils.run.processes import main_only

logger = logging.getLogger(__name__)

CLIPS = "clips.csv.gz"  # in the save folder: the clips that the run was last started with
PACKAGES = ("torch", "torchaudio", "speechbrain", "numpy", "soundfile", "soxr", "torchmetrics", "HyperPyYAML")


def class_numbers(save_folder, table) -> list[dict[str, int]]:
    """Read the labels of a run's classes, name -> label: of all, and of those in its list of clips, which may be None.

    Two, as a class that is gone without ever having had a task changes nothing.
    """
    used = {} if table is None else dict(zip(table["class_name"], map(int, table["label"]), strict=True))
    every = _last_start(os.path.dirname(save_folder)).get("classes", [])
    return [{name: label for label, name in enumerate(every)}, used]


def tasks_of(save_folder, settings) -> list[list[str]]:
    """Read the class names of each task at a run's last start.

    None if its settings have another data set or `n_tasks`, or are from before tasks were recorded.
    """
    file = os.path.join(os.path.dirname(save_folder), "settings.json")
    there = read_settings(file) if os.path.isfile(file) else {}
    same = all(there.get(key) == settings.get(key) for key in ("dataset", "n_tasks"))
    return _last_start(os.path.dirname(save_folder)).get("tasks", []) if same else []


def list_of_clips(save_folder) -> pd.DataFrame | None:
    """Read a run's list of clips, see `datasets.changes.clip_table`; None if there is none.

    Raises
    ------
    InputError
        The list is damaged.
    """
    path = os.path.join(save_folder, CLIPS)
    if not os.path.isfile(path):
        return None
    try:
        return read_clips(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it, and the data are taken as they are.") from error


def _last_known_task(before, data):
    """Return the last task of whose classes a list of clips has some; the last of all without a list."""
    if before is None:
        return data.n_tasks - 1
    known = data.rows["class_name"].isin(set(before["class_name"]))
    return int(data.rows.loc[known, "task"].max()) if known.any() else data.n_tasks - 1


@main_only
def check_data(folder, save_folder, data: Data, accept: bool) -> Changes | None:
    """Compare tasks and data with those of the run's last start.

    More tasks at the end are no change, and neither are the clips of their classes. A task is new if it comes after all
    tasks that have a clip in the list of the last start.

    Parameters
    ----------
    folder, save_folder : str
        Of the run; they needn't exist.
    data : datasets.prepare.Data
    accept : bool
        Go on with changed data.

    Returns
    -------
    Changes or None
        What changed, where that is known and accepted.

    Raises
    ------
    InputError
        The data changed, and `accept` is false; or a class has another task.
    """
    tasks = _last_start(folder).get("tasks", [])
    if lost := lost_tasks(tasks, data.classes_of_tasks()):
        gone = [name for names in tasks for name in names if name not in data.classes]
        lost = f"the class {gone[0]} is gone" if gone else lost
        raise InputError(f"{folder} is a run of other tasks ({lost}). Set experiment_name to start afresh.")
    before = list_of_clips(save_folder)
    if before is not None:
        earlier = data.rows["task"] <= _last_known_task(before, data)
        changes = compare(before, clip_table(data)[earlier.to_numpy()])
        what = str(changes)
    else:  # a run from before this file, or none
        before, now = _last_start(folder).get("data", ""), data.fingerprint()
        changes = None
        what = "other clips" if before.split(" ")[:1] == now.split(" ")[:1] and before != now else ""
    if not (changes or what and changes is None):
        return None
    if not accept:
        raise InputError(
            f"The data set is not the one that {folder} was started with: {what}. Set experiment_name to start afresh, "
            "or --accept_changed_data=True to go on: finished tasks stay as they are and have not seen what changed."
        )
    logger.warning("The data set changed since the last start (%s): finished tasks have not seen that.", what)
    return changes


@main_only
def save_record(folder, save_folder, run_opts, data: Data, changes: Changes | None = None, argv=None, start_from=None):
    """Add this start to versions.json: command, versions, commit, hardware, data. No environment.

    What was logged before there was a run folder goes to its log.txt.

    Parameters
    ----------
    folder, save_folder : str
    run_opts : speechbrain.utils.run_opts.RunOptions
    data : datasets.prepare.Data
    changes : Changes, optional
        What changed in the data since the last start.
    argv : list of str, optional
        Arguments without the script's name, instead of the process's.
    start_from : dict, optional
        The task of another run that this one began after; by default as the last start has recorded it.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    commit = ""
    if shutil.which("git"):
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
        commit = git.stdout.strip()
    start = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [os.path.basename(sys.argv[0]), *(sys.argv[1:] if argv is None else argv)],
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device_name(run_opts.device or infer_device()),
        "threads": torch.get_num_threads(),
        "data": data.fingerprint(),
        "classes": data.classes,
        "tasks": data.classes_of_tasks(),
        **({"data_changes": dataclasses.asdict(changes)} if changes else {}),
        **{name: version(name) for name in PACKAGES},
    }
    last = _last_start(folder, warn=True)
    earlier = last.pop("earlier_starts", [])
    start |= {"start_from": start_from} if start_from else {k: v for k, v in last.items() if k == "start_from"}
    clips = os.path.join(save_folder, CLIPS)
    before = last.get("tasks")
    if before is None:  # no earlier start, or one of an older version
        before = start["tasks"][: 1 + _last_known_task(list_of_clips(save_folder), data)]
    if added := start["tasks"][len(before) :]:
        logger.info("Tasks added since the last start: %s.", "; ".join(map(", ".join, added)))
        start["added_tasks"] = added
    if changes or added or not os.path.isfile(clips):  # first, so that a crash here leaves the tasks to be recorded
        write_clips(clips, clip_table(data))
    write_json(os.path.join(folder, "versions.json"), {**start, "earlier_starts": [*earlier, last] if last else []}, 1)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # log.txt
            for early in early_messages.buffer:
                handler.handle(early)
    early_messages.buffer.clear()


def _last_start(folder, warn=False):
    """The record of the last start; empty if there is none or, with a warning if asked for, if it is damaged."""
    path = os.path.join(folder, "versions.json")
    if not os.path.isfile(path):
        return {}
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        if warn:
            logger.warning("%s is damaged (%s): what it recorded of earlier starts is lost.", path, error)
        return {}
