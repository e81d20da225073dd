"""Prepare a data set: read its metadata, assign labels and tasks, check every clip, open the samples."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from datasets.store import AudioStore, LiveAudio, open_store
from datasets.table import read_dataset
from datasets.tasks import assign_tasks, keep_numbers, resolve_tasks
from utils.io.errors import InputError

logger = logging.getLogger(__name__)

# The arguments of `prepare`, which are keys of a YAML; those with a default are missing in YAMLs of earlier versions.
DATA_KEYS = ("dataset", "data_folder", "task_classes", "sample_rate", "store_folder", "skip_bad_audio", "cut_audio")


@dataclass
class Data:
    """A data set, ready for training and evaluation."""

    rows: pd.DataFrame  # one per clip and split: `clip` (its number in the store), as `load` has it, `label`, `task`
    classes: list[str]  # class names in label order
    store: AudioStore | LiveAudio  # the samples
    task_classes: list[list[int]]  # the labels of each task
    source: str  # name of the data set

    @property
    def n_tasks(self):
        return len(self.task_classes)

    def fingerprint(self) -> str:
        """Return a digest of the clips used, their splits and labels, in order.

        The place of the data folder and the times of its files don't matter. From a store the digest covers every
        sample (length and CRC-32) and begins with "stored". Decoded on the fly it covers the names and sizes of the
        files and begins with "live". Only digests of one kind can be compared.
        """
        contents = self.store.contents
        rows = self.rows[["clip", "split", "class_name", "label"]].itertuples(index=False)
        lines = (f"{contents[row.clip]} {row.split} {row.class_name} {row.label}\n" for row in rows)
        return f"{self.store.kind} {hashlib.blake2b(''.join(lines).encode(), digest_size=8).hexdigest()}"

    def split(self, name: str) -> pd.DataFrame:
        """Return the rows of "train", "valid" or "test"."""
        return self.rows[self.rows["split"] == name]

    def lacks(self, split: str) -> str:
        """Say that a split, or some tasks of it, has no clips, and what there is instead; "" if nothing is lacking."""
        there = set(self.split(split)["task"])
        without = [str(task) for task in range(self.n_tasks) if task not in there]
        if not without:
            return ""
        where = f" of task{'s' if len(without) > 1 else ''} {', '.join(without)}" if there else ""
        counts = ", ".join(f"{name} {count}" for name, count in self.rows["split"].value_counts().items())
        folds = ", ".join(map(str, sorted(self.rows["fold"].unique()))) if "fold" in self.rows else ""
        folds = f"; the folds there are {folds}" if folds else ""
        return f"No clip{where} is in the {split} split of {self.source}. The clips there are: {counts}{folds}"

    def check_splits(self, needed: bool):
        """Say that the valid or test split, or some tasks of it, has no clips, before anything is trained.

        A training that is validated and tested itself (`needed`) can't do without clips of its first task. One that
        only hands its encoders to an evaluation, of maybe other data, is warned.

        Raises
        ------
        InputError
        """
        if "labelled" in self.rows and not self.rows["labelled"].any():
            return  # clips without a class are trained on, and judged by no test
        for split in ("valid", "test"):
            lacking, first = self.lacks(split), (self.split(split)["task"] == 0).any()
            if lacking and needed and not first:
                raise InputError(f"{lacking}. Training is validated on valid and tested on test, from task 0 on.")
            if lacking:
                logger.warning("%s. linclf_train.py needs clips of each task in train, valid and test.", lacking)

    def classes_of_tasks(self) -> list[list[str]]:
        """Return the names of each task's classes, in label order."""
        return [[self.classes[label] for label in sorted(labels)] for labels in self.task_classes]

    def task_names(self) -> list[str]:
        """Return the class names of each task, joined: "siren, drill"."""
        by_task = self.rows.drop_duplicates(["task", "label"]).sort_values(["task", "label"]).groupby("task")
        names = {task: ", ".join(group["class_name"]) for task, group in by_task}
        return [names.get(task, "no usable clip") for task in range(self.n_tasks)]


def prepare(
    dataset: Callable,
    data_folder: str | os.PathLike,
    task_classes: Sequence | Callable,
    sample_rate: int,
    store_folder: str | None,
    skip_bad_audio: bool = False,
    cut_audio: str = "refuse",
    numbers: Iterable[Mapping[str, int]] = (),
    tasks_before: Iterable[Sequence[Sequence[str]]] = (),
    clips_before: Sequence[pd.DataFrame] = (),
    needs_labels: bool = False,
) -> Data:
    """Read the metadata, check every clip, and open or build the audio store.

    Parameters
    ----------
    dataset
        A data set's `load`: data_folder -> `datasets.table.Table`.
    task_classes
        See `datasets.tasks.resolve_tasks`.
    sample_rate
        Hz.
    store_folder
        Where stores are kept; None decodes on the fly.
    skip_bad_audio
        Leave out clips that can't be read, instead of stopping.
    cut_audio
        "refuse" takes a file that is cut off for one that can't be read, "keep" uses what is there.
    numbers
        Labels that classes have in earlier records, and keep: see `datasets.tasks.keep_numbers`.
    tasks_before
        Tasks that earlier runs have drawn: see `datasets.tasks.resolve_tasks`.
    clips_before
        Tables of clips, `wav_path` and `split`, of earlier records. Where the data set draws splits, a group that is in
        one of them keeps its split.
    needs_labels
        Leave out the clips that have no class.

    Raises
    ------
    InputError
        Metadata, classes or audio are not as they must be; or labels are needed and no clip has any.
    """
    table = read_dataset(dataset, data_folder)
    rows, classes, source = _labelled(table, data_folder) if needs_labels and "labelled" in table.rows else table
    rows, classes = _keep_splits(rows.reset_index(drop=True), clips_before), keep_numbers(classes, numbers)
    rows["clip"], paths = pd.factorize(rows["wav_path"])  # a file in two splits is one clip of the store
    tasks = resolve_tasks(rows, classes, task_classes, tasks_before)
    assigned = assign_tasks(rows, classes, tasks)
    how = {"skip_bad_audio": skip_bad_audio, "cut_audio": cut_audio}
    store = open_store(data_folder, list(paths), sample_rate, store_folder, source.lower(), **how)
    bad = assigned["wav_path"].isin(list(store.bad))
    return Data(assigned[~bad].reset_index(drop=True), classes, store, tasks, source)


def _keep_splits(rows, clips_before):
    """Give groups whose split is drawn that of earlier records, of the first of several."""
    if "drawn" not in rows:
        return rows
    before = {}
    for table in reversed(clips_before):
        before |= dict(zip(table["wav_path"], table["split"], strict=True))
    known = rows["wav_path"].map(before).groupby(rows["group"]).transform("first")  # that is there
    return rows.assign(split=known.where(known.notna(), rows["split"])).drop(columns="drawn")


def _labelled(table, data_folder):
    """Return a table without the clips that have no class, and without the names that stand for one."""
    without = ~table.rows["labelled"]
    if without.all():
        raise InputError(
            f"No clip of {data_folder} has a class, and this run needs labels: put the clips into a folder per class, "
            "or give clips.csv a column class. Without labels, simclr_train.py and simsiam_train.py train an encoder, "
            "and supclr_train.py with --sup_weight=0."
        )
    if without.any():
        logger.warning("%d of %d clips have no class and are left out.", without.sum(), len(without))
    stand_ins = set(table.rows.loc[without, "class_name"])
    return table._replace(rows=table.rows[~without], classes=[name for name in table.classes if name not in stand_ins])
