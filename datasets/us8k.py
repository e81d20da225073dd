"""UrbanSound8K (Salamon, Jacoby, Bello, ACM MM 2014): 8,732 clips of up to 4 s in 10 classes, in 10 folds.

Reads the published layout, ``metadata/UrbanSound8K.csv`` and ``audio/fold{1..10}/*.wav``, and those of mirrors, which
have the CSV, the folds or both in the root. Its licence asks every user to download it in person, see the README.
"""

import os
from collections.abc import Sequence

from datasets.table import Table, class_names, first_there, fold_split, folder_of, read_metadata, refuse

SOURCE = "UrbanSound8K"
COLUMNS = ("slice_file_name", "fold", "classID", "class")
FOLDS = range(1, 11)


def load(
    data_folder: str | os.PathLike,
    training_folds: Sequence[int] = FOLDS[:8],
    valid_folds: Sequence[int] = (9,),
    test_folds: Sequence[int] = (10,),
) -> Table:
    """Read the metadata into a table of clips, with their `fold`. Labels follow the classID.

    `data_folder` is the unpacked ``UrbanSound8K``. Clips of folds that no split has are left out. The data set is
    published for cross-validation over its folds, which must not be shuffled: slices of one recording share a fold.

    Raises
    ------
    InputError
        The folder, the metadata or a column is missing, a row is malformed, or the folds are not as they must be.
    """
    name = first_there(data_folder, "metadata/UrbanSound8K.csv", "UrbanSound8K.csv")
    meta = read_metadata(data_folder, name, COLUMNS, integers=("fold", "classID"))
    names = class_names(name, meta, "classID", "class", gaps=False)
    splits = {"training_folds": training_folds, "valid_folds": valid_folds, "test_folds": test_folds}
    folds = "fold" + meta["fold"].astype(str)
    rows = meta.assign(
        wav_path=folder_of(data_folder, ("audio/", ""), folds.unique()) + folds + "/" + meta["slice_file_name"],
        class_name=meta["classID"].map(names),
        split=fold_split(meta["fold"], FOLDS, SOURCE, **splits),
    )
    refuse(name, meta, rows["wav_path"].duplicated(), "a clip that an earlier line has")
    rows = rows.loc[rows["split"].notna(), ["wav_path", "class_name", "split", "fold"]]
    return Table(rows.reset_index(drop=True), list(names), SOURCE)
