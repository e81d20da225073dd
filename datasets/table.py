"""What the readers of published metadata share: a table of clips, every cell checked."""

import os

from datasets.errors import InputError

import pandas as pd


def read_metadata(data_folder, name, columns, integers=(), sep=","):
    """Read a metadata file and check what every later step relies on.

    Parameters
    ----------
    data_folder : str
        Folder of the unpacked data set.
    name : str
        The metadata file's path below it.
    columns : sequence of str
        Columns that must be there, without an empty cell. The first names the audio file.
    integers : sequence of str
        Those of `columns` that hold whole numbers.
    sep : str
        What parts the columns.

    Returns
    -------
    pandas.DataFrame
        Text columns as str, `integers` as int; one row a clip.

    Raises
    ------
    InputError
        Folder, file or column missing, no rows, an empty or non-integer cell, or a file name that leaves the folder.
    """
    path = os.path.join(data_folder, name)
    if not os.path.isfile(path):
        raise InputError(f"{name} is not in data_folder {data_folder}: expected {path}; found {_listing(data_folder)}.")
    try:
        meta = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:  # pandas' ParserError, EmptyDataError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not a readable table: {' '.join(str(error).split())}") from error
    if not isinstance(meta.index, pd.RangeIndex):  # pandas takes the first cells for row names then
        raise InputError(f"{path} has more cells in a row than column names.")
    meta = meta.fillna("")  # the cells that a short row lacks
    missing = [c for c in columns if c not in meta.columns]
    if missing:
        found = ", ".join(" ".join(str(column).split()) for column in meta.columns)
        raise InputError(f"{path} lacks the columns {', '.join(missing)}; it has {found}.")
    if meta.empty:
        raise InputError(f"{path} has no rows.")
    for column in columns:
        _refuse(path, meta, meta[column].str.strip() == "", f"no {column}")
    for column in integers:
        _refuse(path, meta, ~meta[column].str.fullmatch(r"\s*\d{1,9}\s*"), f"a {column} that is no whole number")
        meta[column] = meta[column].astype(int)
    names = meta[columns[0]]
    leaves = names.str.startswith("/") | names.str.contains(r"(?:^|[/\\])\.\.(?:[/\\]|$)")
    _refuse(path, meta, leaves, f"a {columns[0]} that leaves the data folder")
    return meta


def _refuse(path, meta, bad, what):
    """Raise for the first of the rows that `bad` marks; line 1 of the file is the header."""
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise InputError(f"{path}, line {row + 2}: {what} ({int(bad.sum())} such rows): {list(meta.iloc[row])}")


def _listing(folder):
    """Say in a few words what a folder holds."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return error.strerror.lower()  # no such file or directory, not a directory, permission denied
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "an empty folder"


def class_names(path, meta, number, name, gaps=True):
    """The class names in the order of their published numbers.

    Parameters
    ----------
    path : str
        The metadata file, for the error.
    meta : pandas.DataFrame
        As `read_metadata` returns it.
    number, name : str
        The columns of a class's number and its name.
    gaps : bool
        Whether numbers may be missing.

    Returns
    -------
    pandas.Series of str
        Name by number, sorted.

    Raises
    ------
    InputError
        A number with two names, a name with two numbers, or a gap where there may be none.
    """
    pairs = meta[[number, name]].drop_duplicates().sort_values(number)
    for column in (number, name):
        twice = pairs[pairs[column].duplicated(keep=False)]
        if len(twice):
            raise InputError(f"{path}: one {column} must be one class, but there are {twice.values.tolist()}.")
    if not gaps and list(pairs[number]) != list(range(len(pairs))):
        raise InputError(f"{path}: {number} must go from 0 up without a gap; it has {list(pairs[number])}.")
    return pairs.set_index(number)[name]


def fold_split(folds, splits, source):
    """Map fold numbers to "train", "valid" and "test".

    Parameters
    ----------
    folds : pandas.Series of int
        The fold of each row.
    splits : dict of str to collection of int
        The folds of each split.
    source : str
        Name of the data set, for the error.

    Returns
    -------
    pandas.Series of str
    """
    split = folds.map({fold: name for name, members in splits.items() for fold in members})
    if split.isna().any():
        raise InputError(f"{source} has no fold {folds[split.isna()].iloc[0]}: is the metadata the published one?")
    return split
