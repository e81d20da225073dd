"""The table of clips that a data set's `load` returns, and what the readers of published metadata share."""

import contextlib
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
# What archivers, file managers and network drives leave in a folder, beside hidden files.
CLUTTER = {"__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "thumbs.db",
           "desktop.ini", "system volume information"}  # fmt: skip
FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Table(NamedTuple):
    """The clips of a data set."""

    # One row per clip and split: `wav_path` below the data folder, `class_name`, `split`. Also `task`, from 0 up, where
    # the data set has tasks of its own, `labelled` where some clips have no class, but a name that stands for one, and
    # `drawn` where `load` has drawn the splits, by the column `group`.
    rows: pd.DataFrame
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


def first_there(data_folder: str | os.PathLike, *names: str) -> str:
    """Return the first of these names that is there below the data folder, or else the first of all."""
    return next((name for name in names if os.path.exists(os.path.join(data_folder, name))), names[0])


def folder_of(data_folder: str | os.PathLike, places: Sequence[str], names: Iterable[str]) -> str:
    """Return which of the places holds files or folders of these names, or else the first place.

    A place is the beginning of a path below the data folder: "audio/", or "" for the data folder itself.
    """
    found = first_there(data_folder, *(place + name for name in names for place in places))
    return next(place for place in sorted(places, key=len, reverse=True) if found.startswith(place))


def read_metadata(
    data_folder: str | os.PathLike,
    name: str,
    columns: Sequence[str],
    integers: Collection[str] = (),
    flags: Collection[str] = (),
    sep: str = ",",
    header: bool = True,
    hint: str = "",
    plain: bool = True,
) -> pd.DataFrame:
    """Read a metadata file and check what every later step relies on.

    Cells are text without space around it, those of `integers` int, those of `flags` bool. Rows without any text are
    left out; the index has the place of each row in the file.

    Parameters
    ----------
    name
        The file's path below `data_folder`.
    columns
        Columns that must be there, without an empty cell. The first names the audio file.
    integers
        The columns that hold whole numbers; 2.0, as some spreadsheets write it, is one.
    flags
        The columns that hold one of `FLAGS`, in any case.
    header
        Whether the first line names the columns; if it doesn't, `columns` are all columns in order.
    hint
        Said where the file is missing: where to get it.
    plain
        Whether the name of the audio file must be without folders.

    Raises
    ------
    InputError
        The folder, the file or a column is missing; there are no rows; a cell is empty, has a control character, or is
        not of its column's kind; or a file name leaves the folder.
    """
    path = os.path.join(data_folder, name)
    if not os.path.isfile(path):
        found = listing(data_folder)
        near = next((place for place in _one_level_off(data_folder) if os.path.isfile(os.path.join(place, name))), None)
        hint = hint if near is None else f"{os.path.join(near, name)} exists: set data_folder to {near}."
        raise InputError(f"{name} is not in data_folder {data_folder}: expected {path}; found {found}. {hint}".strip())
    meta = _read_table(path, sep, None if header else list(columns))
    missing = [c for c in columns if c not in meta.columns]
    if missing:
        found = _cut(", ".join(" ".join(column.split()) for column in meta.columns))
        other = _other_separator(meta, missing, sep)
        raise InputError(f"{path} lacks the columns {', '.join(missing)}; it has {found}.{other}")
    if meta.empty:
        raise InputError(f"{path} has no rows.")
    for column in columns:
        refuse(path, meta, meta[column] == "", f"no {column}", header)
        refuse(path, meta, meta[column].str.contains(CONTROL), f"a {column} with a control character", header)
    for column in integers:
        no_number = ~meta[column].str.fullmatch(r"\d{1,9}(\.0*)?")
        refuse(path, meta, no_number, f"a {column} that is no whole number", header)
        meta[column] = meta[column].str.partition(".")[0].astype(int)
    for column in flags:
        values = meta[column].str.lower().map(FLAGS)
        refuse(path, meta, values.isna(), f"a value of {column} that is neither True nor False", header)
        meta[column] = values.astype(bool)
    names = meta[columns[0]]
    refuse(path, meta, names.str.contains(LEAVES), f"a {columns[0]} that leaves the data folder", header)
    if plain:
        refuse(path, meta, names.str.contains(r"[/\\]"), f"a {columns[0]} that names a folder too", header)
    return meta


def _read_table(path, sep, names):
    """Read all cells as text, without space around it; `names` are the columns of a file without a header."""
    kinds = {"dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    try:
        meta = pd.read_csv(path, sep=sep, header=None if names else 0, names=names, **kinds)
        with open(path, encoding="utf-8") as file:
            lines = [place for place, line in enumerate(file) if line.strip("\ufeff \t\n")]
    except (ValueError, OSError) as error:  # ParserError, EmptyDataError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not a readable table: {' '.join(str(error).split())}") from error
    if not isinstance(meta.index, pd.RangeIndex):  # rows longer than the header: pandas takes the first cells for names
        cells, columns = meta.reset_index(), meta.columns
        if (cells.iloc[:, len(columns) :].fillna("") != "").any(axis=None):
            raise InputError(f"{path} has more cells in a row than column names.")
        meta = cells.iloc[:, : len(columns)].set_axis(columns, axis=1)  # spreadsheets end rows in empty cells
    header = not names
    if len(lines) == header + len(meta):  # else a cell has several lines
        meta.index = [place - header for place in lines[header:]]
    meta = meta.fillna("")  # the cells that a short row lacks
    meta = meta.apply(lambda column: column.str.strip()).rename(columns=lambda name: str(name).strip())
    return meta[(meta != "").any(axis=1)]


def _one_level_off(folder):
    """Yield the folders in a folder, and the one above it."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from sorted(entry.path for entry in entries if not is_clutter(entry.name) and entry.is_dir())
    yield os.path.dirname(os.path.realpath(folder))


def _other_separator(meta, missing, sep):
    """Say which separator a table has that lacks columns because it was read with another; "" if that isn't why."""
    names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
    header = sep.join(meta.columns)
    found = [other for other in names if other != sep and set(missing) <= {n.strip() for n in header.split(other)}]
    return f" Its columns are separated by {names[found[0]]}: save it with {names[sep]}." if found else ""


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
        line, cells = meta.index[row] + 1 + header, _cut([str(cell) for cell in meta.iloc[row] if str(cell)])
        more = f" ({int(bad.sum())} such rows)" if bad.sum() > 1 else ""
        raise InputError(f"{path}, line {line}: {what}{more}: {cells}. Correct it there, or delete the line.")


def is_clutter(name: str) -> bool:
    """Return whether an entry of a folder is hidden, or of an archiver or a network drive: no part of a data set."""
    return name.startswith(".") or name.lower() in CLUTTER


def listing(folder: str | os.PathLike) -> str:
    """Say in a few words what a folder holds."""
    try:
        names = sorted(name for name in os.listdir(folder) if not is_clutter(name))
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


def fold_split(folds: pd.Series, known: Collection[int], source: str, **splits: Sequence[int]) -> pd.Series:
    """Map the fold of each row to its split; missing where no split has the fold.

    Parameters
    ----------
    folds
        Of each row.
    known
        The folds of the data set.
    source
        Its name, for errors.
    **splits
        `training_folds`, `valid_folds` and `test_folds`: the folds of each split, as the YAML's keys of these names.

    Raises
    ------
    InputError
        A split without folds, a fold that the data set lacks, or one in two splits.
    """
    of = {}
    for key, members in splits.items():
        members = list(members) if isinstance(members, list | tuple | range) else [members]
        if not members:
            raise InputError(f"{key} is empty: name at least one of {source}'s folds, such as --{key}=[{max(known)}].")
        for fold in members:
            if isinstance(fold, bool) or fold not in known:
                raise InputError(f"{key} has {fold!r}: {source}'s folds are {min(known)} to {max(known)}.")
            if fold in of:
                both = f"{key} twice" if of[fold] == key else f"{of[fold]} and {key}"
                raise InputError(f"Fold {fold} is in {both}: give each fold to one split, or to none.")
            of[fold] = key
    if not folds.isin(known).all():
        fold = folds[~folds.isin(known)].iloc[0]
        raise InputError(f"{source} has no fold {fold}: is the metadata the published one?")
    if not folds.isin(list(of)).any():
        there = ", ".join(map(str, sorted(folds.unique())))
        raise InputError(f"No clip is in the folds of {', '.join(splits)}: the clips there are in the folds {there}.")
    return folds.map(of).map({"training_folds": "train", "valid_folds": "valid", "test_folds": "test"})


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
