"""What the readers of published metadata share: a table of clips, every cell checked."""

import hashlib
import os
import re

import pandas as pd

from utils.io.errors import InputError

# Told by the text alone: a folder or a file of the data set may be a link, since people link data sets.
LEAVES = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def read_metadata(data_folder, name, columns, integers=(), sep=",", header=True, hint="", plain=True):
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
    header : bool
        Whether the first line names the columns; where it doesn't, `columns` are all there are.
    hint : str
        Said where the file is missing: where to get it.
    plain : bool
        Whether the audio file's name may name no folder, or else may name folders below the data folder.

    Returns
    -------
    pandas.DataFrame
        Text columns as str, `integers` as int; one row a clip.

    Raises
    ------
    InputError
        Folder, file or column missing, no rows, an empty or non-integer cell, a control character, or a file name that
        leaves the folder.
    """
    path = os.path.join(data_folder, name)
    if not os.path.isfile(path):
        found = listing(data_folder)
        raise InputError(f"{name} is not in data_folder {data_folder}: expected {path}; found {found}. {hint}".strip())
    meta = _read_table(path, sep, None if header else list(columns))
    missing = [c for c in columns if c not in meta.columns]
    if missing:
        found = ", ".join(" ".join(str(column).split()) for column in meta.columns)
        raise InputError(f"{path} lacks the columns {', '.join(missing)}; it has {_cut(found)}.")
    if meta.empty:
        raise InputError(f"{path} has no rows.")
    for column in columns:
        refuse(path, meta, meta[column].str.strip() == "", f"no {column}", header)
        refuse(path, meta, meta[column].str.contains(CONTROL), f"a {column} with a control character", header)
    for column in integers:
        no_number = ~meta[column].str.fullmatch(r"\s*\d{1,9}\s*")
        refuse(path, meta, no_number, f"a {column} that is no whole number", header)
        meta[column] = meta[column].astype(int)
    names = meta[columns[0]]
    refuse(path, meta, names.str.contains(LEAVES), f"a {columns[0]} that leaves the data folder", header)
    if plain:
        refuse(path, meta, names.str.contains(r"[/\\]"), f"a {columns[0]} that names a folder too", header)
    return meta


def _read_table(path, sep, names):
    """All cells as text; `names` are the columns of a file without a header."""
    kinds = {"dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    try:
        meta = pd.read_csv(path, sep=sep, header=None if names else 0, names=names, **kinds)
    except (ValueError, OSError) as error:  # pandas' ParserError, EmptyDataError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not a readable table: {' '.join(str(error).split())}") from error
    if not isinstance(meta.index, pd.RangeIndex):  # pandas takes the first cells for row names then
        raise InputError(f"{path} has more cells in a row than column names.")
    return meta.fillna("")  # the cells that a short row lacks


def _cut(value):
    """A value as text of a readable length: a damaged file may have cells of any."""
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]} ..."


def refuse(path, meta, bad, what, header=True):
    """Raise for the first of the rows of a file that `bad` marks.

    Parameters
    ----------
    path : str
        The file.
    meta : pandas.DataFrame
        All its rows, as `read_metadata` returns them.
    bad : pandas.Series of bool
        Which rows are wrong.
    what : str
        What is wrong with them.
    header : bool
        Whether the file's first line is no row.

    Raises
    ------
    InputError
        Any row is wrong.
    """
    if bad.any():
        row = int(bad.to_numpy().argmax())
        line, cells = row + 1 + header, _cut(list(meta.iloc[row]))
        raise InputError(f"{path}, line {line}: {what} ({int(bad.sum())} such rows): {cells}")


def listing(folder):
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
            found = _cut(twice.values.tolist())
            raise InputError(f"{path}: one {column} must be one class, but there are {found}.")
    if not gaps and list(pairs[number]) != list(range(len(pairs))):
        found = _cut(list(pairs[number]))
        raise InputError(f"{path}: {number} must go from 0 up without a gap; it has {found}.")
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


def seeded_order(ids, seed):
    """Shuffle ids by seed: a function of the seed and the ids alone, not of the order they come in.

    Each id is hashed with the seed, and the hashes are sorted. So an id more or less leaves the others in their order,
    and no library's random stream is relied on, which the next version may change.

    Parameters
    ----------
    ids : iterable
        What has a text of its own; one that comes twice counts once.
    seed : int

    Returns
    -------
    list
    """
    return sorted(set(ids), key=lambda i: hashlib.blake2b(os.fsencode(f"{seed} {i}"), digest_size=8).digest())


def hold_out(ids, share, seed):
    """Draw a share of ids for validation, rounded, at least one, by `seeded_order`.

    Parameters
    ----------
    ids : iterable
    share : float
    seed : int

    Returns
    -------
    set
    """
    order = seeded_order(ids, seed)
    return set(order[: max(1, round(share * len(order)))])
