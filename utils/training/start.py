"""Where a run begins: after a finished task of another run, whose encoder and heads it takes over.

The run gets a copy of what it begins with, of hard links where the disk allows them, so it doesn't need the other run
again. If its first tasks are those of the other run, these are taken over as finished (``save/task0`` and so on), and
its next task is the first that is trained. If it shares no clip with them, its own task 0 begins with the weights,
which are in ``save/start``.
"""

import copy
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from speechbrain.utils.checkpoints import PARAMFILE_EXT

from datasets.changes import clip_table, compare
from datasets.tasks import lost_tasks
from models.exported import Exported, is_export, read_export
from utils.io.errors import InputError
from utils.run.folder import read_settings, same_setting, same_yaml
from utils.run.keys import ENCODER_KEYS
from utils.run.record import list_of_clips
from utils.strategies.weights import PerWeight
from utils.training.checkpoints import ASIDE, Misfit, is_finished, latest_checkpoint, load_weights
from utils.training.context import FRONT_END
from utils.training.from_export import check_fit, state_digest, write_checkpoint
from utils.training.runs import definition, find_save, settings_of

logger = logging.getLogger(__name__)

OTHER_DATA = "start"  # in the save folder: the weights with which task 0 begins
TEXT = r"task (\d+), weights ([0-9a-f]{16})"


@dataclass
class Start:
    """A finished task of another run.

    Attributes
    ----------
    save
        The other run's save folder; "" where that is gone, and this run has its own copy of what it needs.
    task
        The task there.
    weights
        Digest of all that it has left to the next.
    first
        The task of this run that is trained first.
    afresh
        Modules that begin with weights of their own, and why.
    record
        What versions.json keeps of all this; None where the other run is gone.
    export
        What the run starts from, instead of another run.
    """

    save: str
    task: int
    weights: str
    first: int = 0
    afresh: Mapping[str, str] | None = None
    record: dict | None = None
    export: Exported | None = None

    @property
    def folder(self) -> str:
        """The folder, below the save folder, that the first task to be trained starts from."""
        return f"task{self.task}" if self.first else OTHER_DATA

    @property
    def text(self) -> str:
        """The start as settings.json has it: the same wherever the other run is."""
        return f"task {self.task}, weights {self.weights}"


def find_start(hparams: dict, settings: dict[str, str]) -> Start | None:
    """Find the task that the key `start_from` names, before any audio is read; None for null.

    Parameters
    ----------
    hparams
        Uses `start_from` (an export; or a run as `find_save` takes it, ``:t`` at its end names a task, else the last),
        `save_folder`, `overwrite`.
    settings
        As `utils.run.folder.run_settings` returns them.

    Raises
    ------
    InputError
        No such run; it is this one, isn't finished, or its encoder or front end is another.
    """
    given = hparams.get("start_from")
    if given is None:
        return None
    match = None if os.path.exists(given) else re.fullmatch(r"(.+):(\d+)", given)
    path, task = (match[1], int(match[2])) if match else (given, None)
    if not os.path.exists(path) and (own := _own_copy(hparams)):
        logger.info("start_from: %s is gone. This run has a copy of what it took from there.", path)
        return own
    if is_export(path):
        exported = read_export(path)
        return Start("", exported.config["task"], state_digest(exported), export=exported)
    save = find_save(path, "start_from", hparams["save_folder"])
    if os.path.realpath(save) == os.path.realpath(hparams["save_folder"]):
        raise InputError(f"start_from={given} is this run itself: set another experiment_name.")
    known, finished = _recorded(hparams), 0
    while is_finished(os.path.join(save, f"task{finished}")):
        finished += 1
    planned = max(finished, len(list(Path(save).glob("train_task*_raw.csv"))))
    if task is None and known and int(known[1]) < finished:  # as at the first start, though the other run has gone on
        task = int(known[1])
    if task is None and finished < planned:
        name = f", or name a finished task, such as {path}:{finished - 1}" if finished else ""
        raise InputError(f"start_from={given} has trained {finished} of {planned} tasks: let its command end{name}.")
    task = finished - 1 if task is None else task
    if task >= finished:
        raise InputError(f"start_from={given}: task {task} isn't trained to its end there; {finished} tasks are.")
    folder = os.path.join(save, f"task{task}")
    _refuse_other_encoder(given, settings_of(folder), settings)
    return Start(save, task, weights_digest(folder))


def _recorded(hparams):
    """Match `TEXT` with the start that an earlier start of this run has recorded; None without one."""
    file = os.path.join(hparams["output_folder"], "settings.json")
    if hparams["overwrite"] or not os.path.isfile(file):
        return None
    return re.fullmatch(TEXT, str(read_settings(file).get("start_from")))


def _own_copy(hparams):
    """Return the start that this run has a whole copy of; None if it has none."""
    known, save = _recorded(hparams), hparams["save_folder"]
    if known and is_finished(os.path.join(save, OTHER_DATA)):
        return Start("", int(known[1]), known[2])
    folders = [os.path.join(save, f"task{task}") for task in range(int(known[1]) + 1 if known else 0)]
    return Start("", int(known[1]), known[2], len(folders)) if folders and all(map(is_finished, folders)) else None


def _refuse_other_encoder(given, theirs, settings):
    """Raise InputError if the settings of an encoder or of its front end differ; older runs may keep none."""
    for key in (key for key in (*ENCODER_KEYS, "embedding_model") if key in theirs and key in settings):
        there, here = theirs[key], settings[key]
        if key == "embedding_model":
            there, here = (definition(key, text, given)[1] for text in (there, here))
        if not (same_setting(there, here) or same_yaml(there, here)):
            said = " ".join(f"was trained with {key}={there}, and here it is {here}".split())
            raise InputError(f"start_from={given} {said}: an encoder goes on as it began.")


def weights_digest(folder: str) -> str:
    """Return a digest of all tensors that a finished task has left to the next."""
    digest = hashlib.blake2b(digest_size=8)
    path = latest_checkpoint(folder)[0]
    for file in sorted(path.glob(f"*{PARAMFILE_EXT}")):
        if file.stem == "counter":
            continue
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises errors of any type on damaged bytes
            raise InputError(f"{file} is damaged: take another copy of that run.") from error
        for name, tensor in state.items():
            digest.update(f"{file.stem}.{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def plan_start(start: Start, run, modules: Mapping[str, torch.nn.Module], strategy):
    """Decide with which task a run begins, and which of its modules begin afresh; write nothing.

    Parameters
    ----------
    start
        `first`, `afresh` and `record` are set.
    run : utils.run.experiment.Run
        With its data read.
    modules
        What is handed on from task to task; their weights stay.
    strategy : utils.strategies.base.Strategy

    Raises
    ------
    InputError
        The tasks up to that one are neither those of the other run, nor all of other clips; nothing is left to train;
        the encoder doesn't fit; or the strategy needs files that the other run lacks.
    """
    given, data = run.hparams["start_from"], run.data
    if start.save:
        theirs = _tasks_of(start)
        start.first = start.task + 1 if _continues(given, start, theirs, data) else 0
        folder = os.path.join(start.save, f"task{start.task}")
        same_classes = _same_classes(start.save, data)
    else:
        folder = os.path.join(run.save_folder, start.folder)
        same_classes = start.first > 0
    if start.first == data.n_tasks:
        raise InputError(f"start_from={given}: task {start.task} is the last of task_classes, so add the next task.")
    if start.export:
        check_fit(start.export, modules["embedding_model"])
        start.afresh = dict.fromkeys([name for name in modules if name != "embedding_model"], "the export has none")
    else:
        reasons = {name: _misfit(folder, name, module, same_classes) for name, module in modules.items()}
        start.afresh = {name: reason for name, reason in reasons.items() if reason}
    if start.first:
        strategy.check_taken([os.path.join(os.path.dirname(folder), f"task{t}") for t in range(start.first)],
                             sorted(start.afresh.keys() - strategy.modules.keys()))  # fmt: skip
    said = "; ".join(f"the {name} begins afresh ({reason})" for name, reason in start.afresh.items())
    what = f"goes on with task {start.first}" if start.first else "begins its own task 0 with these weights"
    logger.info("start_from %s (%s): this run %s%s.", given, start.text, what, f"; {said}" if said else "")
    if start.save or start.export:
        settings = start.export.settings if start.export else settings_of(folder)
        origin = start.export.path if start.export else os.path.dirname(start.save)
        start.record = {"run": os.path.realpath(origin), "task": start.task,
                        "weights": start.weights, "first_task": start.first, "afresh": start.afresh,
                        "settings": settings}  # fmt: skip


def _tasks_of(start):
    """Return the class names of each task up to the start's, from the lists of clips that the run has left."""
    found = []
    for task in range(start.task + 1):
        files = [os.path.join(start.save, f"{split}_task{task}_raw.csv") for split in ("train", "valid", "test")]
        tables = [pd.read_csv(file, dtype=str, keep_default_na=False) for file in filter(os.path.isfile, files)]
        found.append(sorted({name for table in tables for name in table["class_name"]}))
    return found


def _continues(given, start, theirs, data):
    """Tell whether the first tasks are those of the other run, clip by clip; False if they share no clip with them."""
    before = list_of_clips(start.save)
    if before is None:
        raise InputError(f"start_from={given} keeps no list of its clips, as of an older version: run its command once "
                         "more, which trains nothing.")  # fmt: skip
    before = before[before["class_name"].isin({name for names in theirs for name in names})]
    now = clip_table(data)
    lost = lost_tasks(theirs, [sorted(names) for names in data.classes_of_tasks()])
    changes = compare(before, now[(data.rows["task"] <= start.task).to_numpy()])
    if not lost and not changes:
        return True
    key = ["wav_path"]
    if len(before) and before["content"].iloc[0].split(" ")[0] == now["content"].iloc[0].split(" ")[0]:
        key.append("content")
    if before.merge(now, on=key).empty:
        return False
    raise InputError(
        f"start_from={given}: the first tasks here must be its tasks up to task {start.task}, of the same "
        f"clips ({lost or changes}), or all tasks here must be of other clips."
    )


def _same_classes(save, data):
    """Tell whether the classes that a run has clips of have the same numbers here."""
    table = list_of_clips(save)
    return all(label < len(data.classes) and data.classes[label] == name
               for name, label in set(zip(table["class_name"], map(int, table["label"]), strict=True)))  # fmt: skip


def _misfit(folder, name, module, same_classes):
    """Say why a module can't take over what a task has left; "" if it can. An encoder must."""
    if name != "embedding_model" and not (latest_checkpoint(folder)[0] / f"{name}{PARAMFILE_EXT}").is_file():
        return "that run has none"
    if name == "classifier" and not same_classes:
        return "of other classes"
    try:
        load_weights(folder, {name: copy.deepcopy(module)})
    except Misfit:
        if name in ("embedding_model", *FRONT_END):
            raise
        return "of another shape there"
    return ""


def load_start(start: Start, folder: str, modules: Mapping[str, torch.nn.Module], method=None):
    """Load from the copy in `folder` what doesn't begin afresh, and fit to that what does.

    Parameters
    ----------
    start
    folder
        Of the task before the first that is trained.
    modules
        What is handed on from task to task.
    method : models.methods.base.Method, optional
        Its state, such as a moving average of the encoder, may have to follow.
    """
    load_weights(folder, {name: module for name, module in modules.items() if name not in start.afresh})
    for module in modules.values():
        if isinstance(module, PerWeight):
            module.forget(start.afresh)
    if method is not None:
        method.begin(modules, start.afresh)


def take_over(start: Start, save_folder: str):
    """Copy what the run begins with, unless an earlier start has done so.

    Raises
    ------
    InputError
        A copy is missing or damaged, and the other run is gone.
    """
    pairs = [(f"task{t}", f"task{t}") for t in range(start.first)] or [(f"task{start.task}", OTHER_DATA)]
    for theirs, ours in pairs:
        folder = os.path.join(save_folder, ours)
        if is_finished(folder):
            continue
        if start.export:
            write_checkpoint(start.export, folder)
            continue
        if not start.save:
            raise InputError(f"{folder} is damaged, and the run that it came from is gone: set start_from to a copy.")
        source = os.path.join(start.save, theirs)
        os.makedirs(folder, exist_ok=True)
        newest = latest_checkpoint(source)[0].name  # last, as it makes the task finished
        others = [entry.name for entry in os.scandir(source) if entry.is_file()]
        for name in (*others, newest):
            _link(os.path.join(source, name), os.path.join(folder, name))


def _link(source, target):
    """Link a file, or the files of a folder, under a temporary name, then rename; copy where links aren't possible.

    Files are never changed in place here, so what one of the runs does later leaves the other's alone.
    """
    aside = os.path.join(os.path.dirname(target), ASIDE + os.path.basename(target))
    if os.path.isdir(source):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside, copy_function=_link_file)
    else:
        if os.path.lexists(aside):
            os.unlink(aside)
        _link_file(source, aside)
    os.rename(aside, target)


def _link_file(source, target):
    try:
        os.link(source, target)
    except OSError:  # another disk, one without links, or another user's file
        shutil.copy2(source, target)
