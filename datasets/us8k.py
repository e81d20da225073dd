"""UrbanSound8K (Salamon, Jacoby, Bello, ACM MM 2014): 8,732 clips of up to 4 s in 10 classes, in 10 folds.

Reads the published layout, ``metadata/UrbanSound8K.csv`` and ``audio/fold{1..10}/*.wav``, and those of mirrors, which
have the CSV, the folds or both in the root. Its licence asks every user to download it in person, see the README.
"""

import os

from datasets.table import Table, class_names, first_there, fold_split, folder_of, read_metadata, refuse

SOURCE = "UrbanSound8K"
COLUMNS = ("slice_file_name", "fold", "classID", "class")
SPLITS = {"train": range(1, 9), "valid": (9,), "test": (10,)}


def load(data_folder: str | os.PathLike) -> Table:
    """Read the metadata into a table of clips, with their `fold`. Labels follow the classID.

    `data_folder` is the unpacked ``UrbanSound8K``.

    Raises
    ------
    InputError
        The folder, the metadata or a column is missing, or a row is malformed.
    """
    name = first_there(data_folder, "metadata/UrbanSound8K.csv", "UrbanSound8K.csv")
    meta = read_metadata(data_folder, name, COLUMNS, integers=("fold", "classID"))
    names = class_names(name, meta, "classID", "class", gaps=False)
    folds = "fold" + meta["fold"].astype(str)
    rows = meta.assign(
        wav_path=folder_of(data_folder, ("audio/", ""), folds.unique()) + folds + "/" + meta["slice_file_name"],
        class_name=meta["classID"].map(names),
        split=fold_split(meta["fold"], SPLITS, SOURCE),
    )
    refuse(name, meta, rows["wav_path"].duplicated(), "a clip that an earlier line has")
    return Table(rows[["wav_path", "class_name", "split", "fold"]], list(names), SOURCE)
