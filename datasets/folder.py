"""Own sounds: a folder of class folders, or any audio files with a table of them, clips.csv.

    <class>/**/*.<ext>                            a class is a folder, with folders in it or not
    {train,valid,test}/<class>/**/*.<ext>         the same, already split
    *.<ext>                                       no class: encoders learn from them all the same
    clips.csv                                     path, and any of class, split, task, start, stop, group

Recordings longer than `segment_seconds` are cut into segments, which are clips like any other, see `datasets.parts`.
"""

import logging
import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import pandas as pd

from datasets.audio import READABLE, duration, map_files
from datasets.parts import Part, cut, parse_part, part_path
from datasets.table import CONTROL, SPLITS, Table, is_clutter, listing, read_metadata, refuse, seeded_order
from utils.io.errors import InputError

logger = logging.getLogger(__name__)

SOURCE = "own-sounds"
CSV = "clips.csv"
OPTIONAL = ("class", "split", "start", "stop", "group")
NAMED = 8  # classes or endings that a message names; the others are counted
SPLIT_NAMES = {name: name for name in SPLITS} | {
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("val", "validation", "dev"), "valid"),
    **dict.fromkeys(("testing", "eval", "evaluation"), "test"),
}
UNLABELLED = "(no class)"  # stands for the class of clips without one
SECONDS = r"\d+(\.\d*)?|\.\d+"


def load(
    data_folder: str | os.PathLike,
    task_classes: Sequence | Callable | None = None,
    segment_seconds: float = 10.0,
    valid_share: float = 0.1,
    test_share: float = 0.2,
    split_seed: int = 2022,
) -> Table:
    """Read a folder of sounds into a table of clips, with their `group`, and with their `task` where clips.csv has it.

    Labels follow the order of `task_classes` where it names the classes, else that of the tasks in clips.csv, else the
    alphabet. Names are compared and kept in Unicode's composed form (NFC), as file systems may change it.

    Parameters
    ----------
    data_folder
        In one of the layouts above.
    task_classes
        As in a YAML. A class that it names must have clips for all splits; others with too few are left out.
    segment_seconds
        Length of a segment. Only the header of a recording is read to cut it.
    valid_share, test_share
        Of each class's groups, at least one each, where no split is given. A group is a recording or, in clips.csv,
        what `group` says. All clips of a group are in one split. Clips without a class are all in train.
    split_seed
        Draws these groups.

    Raises
    ------
    InputError
        There is no audio; clips.csv is malformed; a class that is named has too few groups, or all have.
    """
    if not os.path.isdir(data_folder):
        raise InputError(f"data_folder {data_folder} is no folder: {listing(data_folder)}.")
    if os.path.isfile(os.path.join(data_folder, CSV)):
        clips = _from_csv(data_folder)
    else:
        clips = _from_folders(data_folder)
    clips = _name_unlabelled(clips)
    asked = _named(task_classes)
    classes = _in_order(clips, asked)
    if clips["split"].eq("").any():
        clips = _split(clips, valid_share, test_share, split_seed).assign(drawn=True)
        clips = _without_few(clips, {dict(enumerate(classes)).get(member, member) for member in asked})
        there = set(classes if asked else clips["class_name"])
        classes = [name for name in classes if name in there]
    clips = _cut(clips, data_folder, segment_seconds)
    columns = ["wav_path", "class_name", "split", "group"] + [c for c in ("task", "drawn") if c in clips]
    columns += ["labelled"] * (not clips["labelled"].all())
    return Table(clips[columns], classes, SOURCE)


# The layouts: a table of path, class_name, split, start, stop, group and, where it is known, task


def _from_folders(folder):
    """Read class folders; files without any are unlabelled."""
    files = _audio_files(folder)
    if not files:
        raise InputError(f"No audio in data_folder {folder}: found {listing(folder)}.")
    tops = {name.split("/")[0] for name, _ in files if "/" in name}
    is_split = len(tops) > 1 and all(top.lower() in SPLIT_NAMES for top in tops)
    rows = []
    for name, path in files:
        parts = name.split("/")[:-1]
        split = SPLIT_NAMES[parts.pop(0).lower()] if is_split and parts else ""
        rows.append((path, parts[0] if parts else "", split, name))
    rows.sort(key=lambda row: (posixpath.basename(row[3]), row[3]))  # crops depend on the order: that of ESC-50's table
    clips = pd.DataFrame(rows, columns=["path", "class_name", "split", "group"])
    without = clips["class_name"] == ""
    if without.any() and not without.all():
        logger.warning("%d files are in no class's folder and are left out, such as %s.", without.sum(),
                       clips.loc[without, "path"].iloc[0])  # fmt: skip
        clips = clips[~without]
    return clips.assign(start=0.0, stop=None)


def _audio_files(folder):
    """List the audio files below a folder, as pairs of name (the path in NFC) and path, by name."""
    files, others, pending = [], Counter(), [("", frozenset())]
    while pending:
        below, above = pending.pop()
        place = os.path.join(folder, below)
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in above:
            continue  # a link to a folder that it is in
        try:
            entries = list(os.scandir(place))
        except OSError as error:
            raise InputError(f"Can't read the folder {place} ({error.strerror}).") from error
        for entry in entries:
            if is_clutter(entry.name):
                continue
            path, ending = below + entry.name, os.path.splitext(entry.name)[1].lower()
            if not entry.is_dir() and ending not in READABLE:
                others[ascii(ending)[1:-1] or "without ending"] += 1
            elif not _is_text(path):
                raise InputError(f"A name in {place} is no readable text: {ascii(entry.name)}. Rename it.")
            elif entry.is_dir():
                pending.append((path + "/", above | {(state.st_dev, state.st_ino)}))
            else:
                files.append((unicodedata.normalize("NFC", path), path))
    if others:
        found = ", ".join(f"{ending} {count}" for ending, count in others.most_common(NAMED))
        logger.info("%d files of %s are no audio that can be read: %s.", sum(others.values()), folder, found)
    return sorted(files)


def _is_text(name):
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return False
    return CONTROL.search(name) is None


def _from_csv(folder):
    """Read clips.csv."""
    meta = read_metadata(folder, CSV, ("path",), hint="", plain=False)
    file = os.path.join(folder, CSV)
    for column in meta:
        if (name := column.lower()) in (*OPTIONAL, "task") and name not in meta:
            raise InputError(f"{file} has a column {column}: write {name}, in small letters.")
    meta = meta.assign(**{column: "" for column in OPTIONAL if column not in meta})
    for column in ("class", "split", "group", *(["task"] if "task" in meta else [])):
        refuse(file, meta, meta[column].str.contains(CONTROL), f"a {column} with a control character")
        meta[column] = meta[column].map(lambda text: unicodedata.normalize("NFC", text))
    for column in ("start", "stop"):
        refuse(file, meta, ~meta[column].str.fullmatch(f"|{SECONDS}"), f"a {column} that is no number of seconds")
    start, stop = pd.to_numeric(meta["start"]).fillna(0.0), pd.to_numeric(meta["stop"])
    refuse(file, meta, stop <= start, "a stop that isn't after its start")
    named_part = meta["path"].map(lambda path: parse_part(path).file) != meta["path"]
    refuse(file, meta, named_part, "a path that names a part, for which there are the columns start and stop")
    paths = _on_disk(folder, meta["path"])
    same = pd.DataFrame({"path": paths, "start": start, "stop": stop}).duplicated()
    refuse(file, meta, same, "a clip that an earlier line has")
    if meta["split"].ne("").any():
        split = meta["split"].str.lower().map(SPLIT_NAMES)
        refuse(file, meta, split.isna(), f"a split that is none of {', '.join(SPLITS)}")
        meta["split"] = split
    stop = stop.astype(object).where(stop.notna(), None)
    group = meta["group"].mask(meta["group"] == "", paths.map(lambda path: unicodedata.normalize("NFC", path)))
    rows = {"path": paths, "class_name": meta["class"], "split": meta["split"], "start": start, "stop": stop}
    clips = pd.DataFrame({**rows, "group": group})
    if "task" in meta:
        clips["task"] = _task_numbers(file, meta)
    elif meta["class"].eq("").any() and not meta["class"].eq("").all():
        without = meta["class"] == ""
        logger.warning("%d of %d clips of %s have no class and are left out, as they have no task either.",
                       without.sum(), len(meta), CSV)  # fmt: skip
        clips = clips[~without]
    return clips


def _on_disk(folder, paths):
    """Return the paths as the disk has them, which may spell accents and separators in other ways."""
    found, there = {}, None
    for path in paths.unique():
        name = posixpath.normpath(path)
        if not os.path.exists(os.path.join(folder, name)):
            there = dict(_audio_files(folder)) if there is None else there
            key = unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/")))
            name = there.get(key, name)
        found[path] = name
    return paths.map(found)


def _task_numbers(file, meta):
    """Number the tasks from 0 up: by value where all are whole numbers, else as they come in the file."""
    refuse(file, meta, meta["task"] == "", "no task")
    names = list(dict.fromkeys(meta["task"]))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    numbers = meta["task"].map({name: number for number, name in enumerate(names)})
    first = numbers.groupby(meta["class"]).transform("first")
    refuse(file, meta, (meta["class"] != "") & (numbers != first), "a class that an earlier line has in another task")
    return numbers


# Classes, splits and segments


def _name_unlabelled(clips):
    """Add whether a clip is `labelled`, and give those that aren't a class that stands for it, one per task."""
    labelled = clips["class_name"] != ""
    if labelled.all():
        return clips.assign(labelled=True)
    clips = clips if "task" in clips else clips.assign(task=0)
    names = clips["task"].map(lambda task: f"{UNLABELLED} task {task}" if task else UNLABELLED)  # also where tasks join
    return clips.assign(labelled=labelled, class_name=clips["class_name"].where(labelled, names))


def _named(task_classes):
    """Return the classes that `task_classes` names, in order; none where it is a function."""
    if not isinstance(task_classes, list | tuple):
        return []
    tasks = [task for task in task_classes if isinstance(task, list | tuple)]
    return [name for task in tasks for name in task if isinstance(name, str | int)]


def _split(clips, valid_share, test_share, seed):
    """Hold out groups of each class for validation and test; clips without a class are in train.

    Classes with few groups choose first, since a group may hold clips of several classes.
    """
    if valid_share + test_share >= 1:
        raise InputError(f"valid_share {valid_share} and test_share {test_share} leave nothing to train on: lower one.")
    labelled = clips[clips["labelled"]]
    groups = [list(found) for _, found in labelled.groupby("class_name")["group"].unique().items()]
    split_of = {}
    for members in sorted(groups, key=len):
        order = seeded_order(members, seed)
        for split, share in (("test", test_share), ("valid", valid_share)):
            wanted = max(1, round(share * len(order))) - sum(split_of.get(group) == split for group in order)
            free = [group for group in order if group not in split_of]
            split_of |= dict.fromkeys(free[: max(0, wanted)], split)
        split_of |= {group: "train" for group in order if group not in split_of}
    return clips.assign(split=[split_of.get(group, "train") for group in clips["group"]])


def _without_few(clips, asked):
    """Leave out the classes that have too few groups for all splits, and say which.

    Raises
    ------
    InputError
        One of them is asked for, or there are no others.
    """
    labelled = clips[clips["labelled"]]
    splits = labelled.groupby("class_name")["split"].nunique()
    few = list(splits.index[splits < len(SPLITS)])
    named = [name for name in few if name in asked] or few
    listed = ", ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more" if len(named) > NAMED else "")
    said = f"too few recordings (groups) for one each in {', '.join(SPLITS)}: {listed}."
    if few and (named is not few or len(few) == len(splits)):
        raise InputError(f"{len(named)} of {len(splits)} classes have {said} Add some, or give {CSV} a column split.")
    if few and not asked:
        logger.warning("%d of %d classes are left out, as they have %s", len(few), len(splits), said)
    return clips[~clips["class_name"].isin(few)]


def _in_order(clips, asked):
    """List the classes in label order: those that are asked for by name, then by task and name."""
    task_of = clips.groupby("class_name")["task"].first() if "task" in clips else dict.fromkeys(clips["class_name"], 0)
    order = sorted(dict(task_of), key=lambda name: (task_of[name], name))
    first = [name for name in dict.fromkeys(asked) if isinstance(name, str) and name in task_of]
    return first + [name for name in order if name not in set(first)]


def _cut(clips, folder, segment_seconds):
    """Replace each clip that is longer than a segment by its segments, and name all in `wav_path`."""
    clips = clips.reset_index(drop=True)
    parts = [Part(*row) for row in clips[["path", "start", "stop"]].itertuples(index=False)]
    files = list(dict.fromkeys(part.file for part in parts if part.stop is None))
    lengths = map_files(duration, [os.path.join(folder, file) for file in files], "reading headers", True)
    duration_of = dict(zip(files, lengths, strict=True))
    segments = [cut(part, duration_of.get(part.file, 0.0), segment_seconds) for part in parts]
    clips = clips.loc[clips.index.repeat([len(found) for found in segments])]
    return clips.assign(wav_path=[part_path(part) for found in segments for part in found]).reset_index(drop=True)
