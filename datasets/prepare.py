"""From a data set's metadata to what an experiment uses: checked clips with labels and tasks, and their samples."""

import hashlib
from dataclasses import dataclass

import pandas as pd

from datasets.store import AudioStore, LiveAudio, open_store
from datasets.tasks import assign_tasks, resolve_tasks

DATA_KEYS = ("dataset", "data_folder", "task_classes", "sample_rate", "store_folder", "skip_bad_audio")


@dataclass
class Data:
    """A data set, ready.

    Attributes
    ----------
    rows : pandas.DataFrame
        One row a clip and split: `clip` (number in the store), `wav_path`, `class_name`, `split`, `label`, `task`.
    classes : list of str
        Class names in label order.
    store : AudioStore or LiveAudio
        The samples.
    task_classes : list of list of int
        The labels of each task.
    source : str
        Name of the data set.
    """

    rows: pd.DataFrame
    classes: list
    store: AudioStore | LiveAudio
    task_classes: list
    source: str

    @property
    def n_tasks(self):
        return len(self.task_classes)

    def fingerprint(self):
        """A digest of the clips used, their splits and labels, in order; not of where or when their files were written.

        From a store it covers every sample (length and CRC-32), and begins with "stored"; decoded on the fly it covers
        the names and sizes of the files, and begins with "live". Only like can be compared with like.
        """
        kind = "stored" if isinstance(self.store, AudioStore) else "live"
        contents = self.store.contents
        rows = self.rows[["clip", "split", "class_name", "label"]].itertuples(index=False)
        lines = (f"{contents[row.clip]} {row.split} {row.class_name} {row.label}\n" for row in rows)
        return f"{kind} {hashlib.blake2b(''.join(lines).encode(), digest_size=8).hexdigest()}"

    def split(self, name):
        """The rows of "train", "valid" or "test"."""
        return self.rows[self.rows["split"] == name]

    def task_names(self):
        """Class names of each task, joined: "siren, drill"."""
        by_task = self.rows.drop_duplicates(["task", "label"]).sort_values(["task", "label"]).groupby("task")
        names = {task: ", ".join(group["class_name"]) for task, group in by_task}
        return [names.get(task, "no usable clip") for task in range(self.n_tasks)]


def prepare(dataset, data_folder, task_classes, sample_rate, store_folder, skip_bad_audio=False):
    """Read the metadata, check every clip, open or build the audio store.

    Parameters
    ----------
    dataset : callable
        A data set's `load`: data_folder -> (rows, classes).
    data_folder : str
    task_classes : sequence of sequences, or callable
        See `datasets.tasks.resolve_tasks`.
    sample_rate : int
        Hz.
    store_folder : str or None
        Where stores are kept; None decodes on the fly.
    skip_bad_audio : bool
        Leave out clips that can't be read, instead of stopping.

    Returns
    -------
    Data

    Raises
    ------
    InputError
        Metadata, classes or audio are not as they must be.
    """
    rows, classes = dataset(data_folder)
    source = rows.attrs["source"]
    rows = rows.reset_index(drop=True)
    rows["clip"], paths = pd.factorize(rows["wav_path"])  # a file that is in two splits is one clip of the store
    tasks = resolve_tasks(rows, classes, task_classes)
    assigned = assign_tasks(rows, classes, tasks)
    store = open_store(
        data_folder, list(paths), sample_rate, store_folder, source.lower(), skip_bad_audio=skip_bad_audio
    )
    bad = assigned["wav_path"].isin(list(store.bad))
    return Data(assigned[~bad].reset_index(drop=True), classes, store, tasks, source)
