"""VGGSound (Chen, Xie, Vedaldi, Zisserman, ICASSP 2020): about 190,000 clips of 10 s from YouTube, in 309 classes.

Reads two layouts, both with whatever clips are there, because many are gone from the web:

    {train,test}/<class>/*.<ext>              also below a folder vgg-sound-16k/
    vggsound.csv, <id>_<start>.<ext>          the metadata as published, and clips beside it or in folders there

Of the second layout, downloaders' names are read too: <id>_<start>_<end> and <id>, times in s or ms, padded or not.

Labels are those of vgg_labels.csv, so that a class has the same number whichever clips are there.
"""

import csv
import difflib
import logging
import os
import re

import pandas as pd

from datasets.audio import READABLE
from datasets.table import Table, hold_out, is_clutter, listing, read_metadata, refuse
from utils.io.errors import InputError

logger = logging.getLogger(__name__)

SOURCE = "VGGSound"
LABELS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vgg_labels.csv")
METADATA = "vggsound.csv"
COLUMNS = ("youtube_id", "start", "label", "split")
BELOW = "vgg-sound-16k"
SPLITS = ("train", "test")
UNLISTED = "extending ladders"  # in some copies of vggsound.csv, but not among the paper's classes: left out
MORE_THAN = 10  # clips that a class needs in train and in test
VALID_SHARE = 0.2  # of each class's training clips
TIME = r"(\d+)(?:\.0*)?"
FILE_NAMES = (re.compile(f"(.+)_{TIME}"), re.compile(f"(.+)_{TIME}_{TIME}"))  # an id may have _ and digits too
SECONDS = 10  # of a clip


def load(data_folder: str | os.PathLike, seed: int = 2022) -> Table:
    """Read into a table which clips are there, of the classes with more than 10 train and more than 10 test clips.

    Both layouts give the same clips the same order and split. Labels follow the alphabetical order of all 309 classes.

    Parameters
    ----------
    data_folder
        Holds one of the two layouts, or a folder ``vgg-sound-16k`` that does.
    seed
        Draws the fifth of each class's training clips that validates.

    Raises
    ------
    InputError
        Neither layout is there, or no clip of it; a malformed row; an unknown class; or no class with enough clips.
    """
    classes = class_names()
    below = BELOW + "/" if os.path.isdir(os.path.join(data_folder, BELOW)) else ""
    folder = os.path.normpath(os.path.join(data_folder, below))
    has_csv = os.path.isfile(os.path.join(folder, METADATA))
    if all(os.path.isdir(os.path.join(folder, split)) for split in SPLITS) and not (has_csv and _is_flat(folder)):
        clips = _from_folders(folder, classes)
    elif has_csv:
        clips = _from_csv(folder, classes)
    else:
        raise InputError(
            f"data_folder {data_folder} has neither the folders train/ and test/ nor {METADATA}, nor has {BELOW}/ in "
            f"it; found {listing(folder)}."
        )
    clips = _with_enough_clips(clips, classes, folder)
    clips = clips.sort_values(["class_name", "clip_id"], ignore_index=True)
    rows = pd.DataFrame(
        {"wav_path": below + clips["wav_path"], "class_name": clips["class_name"], "split": _split(clips, seed)}
    )
    return Table(rows, classes, SOURCE)


def class_names() -> list[str]:
    """Return the 309 published names, alphabetical."""
    with open(LABELS, encoding="utf-8", newline="") as file:
        return [row[0] for row in csv.reader(file)]


def _key(name):
    """Return the letters and digits of a class name: they are the same on every file system."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _published_names(names, classes, where):
    """Map each class name found to the published one."""
    by_key = {_key(name): name for name in (*classes, UNLISTED)}
    for name in names:
        if _key(name) not in by_key:
            near = by_key[difflib.get_close_matches(_key(name), by_key, n=1, cutoff=0)[0]]
            raise InputError(f"{where}: {name!r} is no class of VGGSound; the nearest is {near!r}.")
    return {name: by_key[_key(name)] for name in names}


def _entries(folder):
    """List the names in a folder, sorted, without clutter."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_clutter(entry.name))
    except OSError as error:
        raise InputError(f"Can't read the folder {folder} ({error.strerror}).") from error


def _audio(folder):
    """Map the names of the audio files in a folder, without extension, to the files, in order."""
    files = {}
    for name in _entries(folder):
        stem, extension = os.path.splitext(name)
        if extension.lower() in READABLE:
            files.setdefault(stem, name)  # a clip in two formats is one clip
    return files


def _folders(folder):
    return [name for name in _entries(folder) if os.path.isdir(os.path.join(folder, name))]


def _is_flat(folder):
    """Return whether train/ and test/ have no folders of classes in them, but the clips that vggsound.csv lists."""
    return not any(_folders(os.path.join(folder, split)) for split in SPLITS)


def _from_folders(folder, classes):
    """Read the clips of ``{train,test}/<class>/*``: `clip_id`, `wav_path` (below the folder), `class_name`, `split`."""
    clips = []
    for split in SPLITS:
        place = os.path.join(folder, split)
        for name, class_name in _published_names(_folders(place), classes, place).items():
            files = _audio(os.path.join(place, name))
            clips += [(stem, f"{split}/{name}/{file}", class_name, split) for stem, file in files.items()]
    return pd.DataFrame(clips, columns=["clip_id", "wav_path", "class_name", "split"])


def _from_csv(folder, classes):
    """Read the clips that vggsound.csv lists and that are there, with the columns of `_from_folders`."""
    path = os.path.join(folder, METADATA)
    meta = read_metadata(folder, METADATA, COLUMNS, integers=("start",), header=False)
    refuse(path, meta, ~meta["split"].isin(SPLITS), f"a split that is none of {', '.join(SPLITS)}", header=False)
    meta["class_name"] = meta["label"].map(_published_names(meta["label"].unique(), classes, path))
    meta["clip_id"] = meta["youtube_id"] + "_" + meta["start"].map("{:06d}".format)
    files = {}
    for place in (*(f"{name}/" for name in _folders(folder) if name != "audio"), "audio/", ""):
        if os.path.isdir(os.path.join(folder, place)):
            files |= {stem: place + name for stem, name in _audio(os.path.join(folder, place)).items()}
    meta["wav_path"] = meta["clip_id"].map(_by_clip(files, meta))
    gone = meta["wav_path"].isna()
    if gone.all():
        raise InputError(
            f"None of the {len(meta)} clips of {path} is there: expected files like {meta['clip_id'].iloc[0]}.wav, or "
            f"<id>_<start>_<end>.wav or <id>.wav, beside it or in a folder such as audio/; found {listing(folder)}."
        )
    logger.info("%d of %d clips of %s are not there", gone.sum(), len(meta), METADATA)
    # A clip that is listed as a train and as a test clip is a test clip: "test" sorts before "train".
    meta = meta[~gone].sort_values("split", kind="stable").drop_duplicates("clip_id")
    return meta[["clip_id", "wav_path", "class_name", "split"]]


def _by_clip(files, meta):
    """Map each clip of vggsound.csv that is there to its file, given the files by their names without extension."""
    starts = meta.groupby("youtube_id")["start"].agg(set).to_dict()
    published = set(meta["clip_id"])
    found, unclear = {}, 0
    for stem in sorted(files, key=published.__contains__, reverse=True):  # the published name counts before any other
        clip = stem if stem in published else _clip_of(stem, starts)
        unclear += clip == ""
        found.setdefault(clip, files[stem])
    if unclear:
        logger.warning("%d files are named by a video alone that has several clips in %s: left out", unclear, METADATA)
    return found


def _clip_of(stem, starts):
    """Return the clip, <id>_<start, 6 digits>, that a file's name stands for, given the starts of each video's clips.

    A time is in seconds if such a clip is listed, else in milliseconds. Returns None for a name of something else, ""
    for a video that has several clips.
    """
    if stem in starts:
        return f"{stem}_{min(starts[stem]):06d}" if len(starts[stem]) == 1 else ""
    for pattern in FILE_NAMES:
        match = pattern.fullmatch(stem)
        if match and match[1] in starts:
            start, *end = map(int, match.groups()[1:])
            in_ms = bool(end) and end[0] - start == 1000 * SECONDS
            for unit in (1000, 1) if in_ms else (1, 1000):
                if start % unit == 0 and start // unit in starts[match[1]]:
                    return f"{match[1]}_{start // unit:06d}"
    return None


def _with_enough_clips(clips, classes, folder):
    """Keep the clips of published classes with enough clips in train and in test."""
    counts = clips.groupby(["class_name", "split"]).size().unstack(fill_value=0).reindex(columns=SPLITS, fill_value=0)
    enough = (counts > MORE_THAN).all(axis=1) & counts.index.isin(classes)
    out = counts[~enough]
    if not enough.any():
        raise InputError(
            f"{folder}: no class has more than {MORE_THAN} train and more than {MORE_THAN} test clips; found "
            f"{counts['train'].sum()} train and {counts['test'].sum()} test clips of {len(counts)} classes."
        )
    if len(out):
        logger.info(
            "%d clips are left out, of %d classes with at most %d train or test clips or not among the %d: %s",
            out.to_numpy().sum(), len(out), MORE_THAN, len(classes), "; ".join(out.index),
        )  # fmt: skip
    return clips[clips["class_name"].isin(counts.index[enough])]


def _split(clips, seed):
    """Return the split of each clip, with a share of each class's training clips held out for validation."""
    held = []
    for _, ids in clips[clips["split"] == "train"].groupby("class_name")["clip_id"]:
        held.extend(ids.index[ids.isin(hold_out(ids.tolist(), VALID_SHARE, seed))])
    return clips["split"].mask(clips.index.isin(held), "valid")
