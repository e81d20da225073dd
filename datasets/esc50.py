"""ESC-50 and its subset ESC-10 (Piczak, ACM MM 2015): 2,000 (400) clips of 5 s in 50 (10) classes, in 5 folds.

Reads the published layout, ``meta/esc50.csv`` and ``audio/*``, and that of mirrors, ``esc50.csv`` in the root and
``audio/audio/*``. The file names are those of the metadata, whatever their format.
"""

import os
from collections.abc import Sequence

from datasets.table import Table, class_names, first_there, fold_split, folder_of, read_metadata, refuse
from utils.io.errors import InputError

SOURCE = "ESC-50"
COLUMNS = ("filename", "fold", "target", "category", "esc10")
FOLDS = range(1, 6)
ESC10_TASKS = [(3, 8), (9, 4), (1, 7), (5, 2), (6, 0)]  # the same pairs of labels as in UrbanSound8K's tasks


def load(
    data_folder: str | os.PathLike,
    esc10_only: bool = False,
    training_folds: Sequence[int] = FOLDS[:3],
    valid_folds: Sequence[int] = (4,),
    test_folds: Sequence[int] = (5,),
) -> Table:
    """Read the metadata into a table of clips, with their `fold`. Labels follow ESC-50's target numbers.

    `data_folder` is the unpacked ``ESC-50-master``; `esc10_only` keeps the ten classes of ESC-10. Clips of folds that
    no split has are left out. The data set is published for cross-validation over its folds, which must not be
    shuffled: clips of one recording share a fold.

    Raises
    ------
    InputError
        The folder, the metadata or a column is missing, a row is malformed, or the folds are not as they must be.
    """
    name = first_there(data_folder, "meta/esc50.csv", "esc50.csv")
    meta = read_metadata(data_folder, name, COLUMNS, integers=("fold", "target"), flags=("esc10",))
    refuse(name, meta, meta["filename"].duplicated(), "a clip that an earlier line has")
    if esc10_only:
        meta = meta[meta["esc10"]]
        if meta.empty:
            raise InputError(f"No row of {data_folder}/{name} is marked esc10: set esc10_only to False.")
    names = class_names(name, meta, "target", "category")
    splits = {"training_folds": training_folds, "valid_folds": valid_folds, "test_folds": test_folds}
    audio = folder_of(data_folder, ("audio/", "audio/audio/", ""), meta["filename"])
    rows = meta.assign(
        wav_path=audio + meta["filename"],
        class_name=meta["target"].map(names),
        split=fold_split(meta["fold"], FOLDS, SOURCE, **splits),
    )
    rows = rows.loc[rows["split"].notna(), ["wav_path", "class_name", "split", "fold"]].reset_index(drop=True)
    return Table(rows, list(names), "ESC-10" if esc10_only else SOURCE)


def default_tasks(esc10_only: bool = False) -> list[tuple[int, ...]]:
    """Return ten tasks of five classes in target order, or for ESC-10 the same five pairs of labels as UrbanSound8K."""
    return ESC10_TASKS if esc10_only else [tuple(range(first, first + 5)) for first in range(0, 50, 5)]
