"""The table of clips that a data set's `load` returns, and what the readers of published metadata share."""

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from utils.io.errors import InputError

SPLITS = ("train", "valid", "test")
# A path that leaves the data folder is known by its text alone: folders and files of a data set may be links.
LEAVES = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Table(NamedTuple):
    """The clips of a data set."""

    rows: pd.DataFrame  # one row per clip and split: `wav_path` below the data folder, `class_name`, `split`
    classes: list[str]  # all class names; a class's place is its label
    source: str  # name of the data set


def read_dataset(load: Callable, data_folder: str | os.PathLike) -> Table:
    """Call a data set's `load` and check what it returns: a `Table`, or a plain pair (rows, classes).

    The source of a pair is `SOURCE` of load's module, or else the module's name.

    Raises
    ------
    InputError
        Also those of `load`.
    """
    loaded = load(data_folder)
    while isinstance(load, functools.partial):  # YAML's `!name:` makes one
        load = load.func
    where = f"{load.__module__}.load"
    if not isinstance(loaded, tuple | list) or len(loaded) not in (2, 3) or not isinstance(loaded[0], pd.DataFrame):
        raise InputError(f"{where} must return a datasets.table.Table: a DataFrame, the classes, the data set's name.")
    rows, classes, *source = loaded
    missing = [column for column in ("wav_path", "class_name", "split") if column not in rows]
    if missing or rows.empty:
        raise InputError(f"{where} returns a table without {' and '.join(missing) or 'rows'}.")
    for column, known in (("split", SPLITS), ("class_name", classes)):
        unknown = rows[column][~rows[column].isin(list(known))]
        if len(unknown):
            raise InputError(f"{where}: {len(unknown)} rows have an unknown {column}, such as {unknown.iloc[0]!r}.")
    if not source:  # earlier versions kept it in attrs
        module = sys.modules[load.__module__]
        source = [rows.attrs.get("source") or getattr(module, "SOURCE", load.__module__.rpartition(".")[2])]
    return Table(rows, list(classes), *source)


def read_metadata(
    data_folder: str | os.PathLike,
    name: str,
    columns: Sequence[str],
    integers: Collection[str] = (),
    sep: str = ",",
    header: bool = True,
    hint: str = "",
    plain: bool = True,
) -> pd.DataFrame:
    """Read a metadata file and check what every later step relies on. Cells are text, those of `integers` int.

    Parameters
    ----------
    name
        The file's path below `data_folder`.
    columns
        Columns that must be there, without an empty cell. The first names the audio file.
    integers
        The columns that hold whole numbers.
    header
        Whether the first line names the columns; if it doesn't, `columns` are all columns in order.
    hint
        Said where the file is missing: where to get it.
    plain
        Whether the name of the audio file must be without folders.

    Raises
    ------
    InputError
        The folder, the file or a column is missing; there are no rows; a cell is empty, no whole number or has a
        control character; or a file name leaves the folder.
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
    """Read all cells as text; `names` are the columns of a file without a header."""
    kinds = {"dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    try:
        meta = pd.read_csv(path, sep=sep, header=None if names else 0, names=names, **kinds)
    except (ValueError, OSError) as error:  # ParserError, EmptyDataError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not a readable table: {' '.join(str(error).split())}") from error
    if not isinstance(meta.index, pd.RangeIndex):  # then pandas has taken the first cells for row names
        raise InputError(f"{path} has more cells in a row than column names.")
    return meta.fillna("")  # the cells that a short row lacks


def _cut(value):
    """Return a value as text of a readable length: cells of a damaged file may be of any length."""
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]} ..."


def refuse(path: str | os.PathLike, meta: pd.DataFrame, bad: pd.Series, what: str, header: bool = True):
    """Raise an InputError that names `what` is wrong with the first row of a file that `bad` marks, if it marks any.

    `meta` holds all rows, as `read_metadata` returns them; `header`: whether the file's first line names the columns.
    """
    if bad.any():
        row = int(bad.to_numpy().argmax())
        line, cells = row + 1 + header, _cut(list(meta.iloc[row]))
        raise InputError(f"{path}, line {line}: {what} ({int(bad.sum())} such rows): {cells}")


def listing(folder: str | os.PathLike) -> str:
    """Say in a few words what a folder holds."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return error.strerror.lower()  # "no such file or directory", "permission denied"
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "an empty folder"


def class_names(path: str, meta: pd.DataFrame, number: str, name: str, gaps: bool = True) -> pd.Series:
    """Return the class names by their published numbers, sorted.

    Parameters
    ----------
    path
        The metadata file, for the error.
    number, name
        The columns of `meta` with a class's number and its name.
    gaps
        Whether numbers may be missing.

    Raises
    ------
    InputError
        A number has two names, a name has two numbers, or a number is missing and none may.
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


def fold_split(folds: pd.Series, splits: dict[str, Collection[int]], source: str) -> pd.Series:
    """Map the fold of each row to its split, given the folds of each split; the error names the data set `source`."""
    split = folds.map({fold: name for name, members in splits.items() for fold in members})
    if split.isna().any():
        raise InputError(f"{source} has no fold {folds[split.isna()].iloc[0]}: is the metadata the published one?")
    return split


def seeded_order(ids: Iterable, seed: int) -> list:
    """Shuffle ids, each once, by a function of the seed and the ids alone, not of the order they come in.

    Each id is hashed, as text, with the seed, and the hashes are sorted. So adding or removing an id leaves the others
    in order, and the result doesn't depend on a library's random stream, which the next version may change.
    """
    return sorted(set(ids), key=lambda i: hashlib.blake2b(os.fsencode(f"{seed} {i}"), digest_size=8).digest())


def hold_out(ids: Iterable, share: float, seed: int) -> set:
    """Draw a share of the ids for validation, rounded, at least one, by `seeded_order`."""
    order = seeded_order(ids, seed)
    return set(order[: max(1, round(share * len(order)))])
