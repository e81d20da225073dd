"""Say which clips of a data set can't be used, and what is there in place of missing ones."""

import collections
import os
import re
import unicodedata

from datasets.audio import READABLE
from datasets.headers import CUT
from datasets.parts import parse_part
from datasets.table import is_clutter, listing
from utils.io.errors import InputError

NAMED = 20  # bad clips that an error names; the others are counted
TRIED = 5  # missing clips for which a file under another name is looked for
MISSING = "no such file"


def refuse_bad(bad: dict[str, str], total: int, skip_bad_audio: bool, data_folder: str):
    """Raise an InputError that lists the bad clips (path -> reason), unless they may be skipped and others remain."""
    if len(bad) == total:
        hint = f"is the data folder right? All {total} clips cannot be used"
    elif bad and not skip_bad_audio:
        hint = f"{len(bad)} of {total} clips cannot be used: mend them, or go on without them by --skip_bad_audio=True"
    else:
        return
    n_cut = sum(reason.startswith(CUT) for reason in bad.values())
    if n_cut:
        hint += f"; --cut_audio=keep uses what there is of the {n_cut} that {'are' if n_cut > 1 else 'is'} cut off"
    lines = [hint, *(f"  {path}: {reason}" for path, reason in list(bad.items())[:NAMED])]
    if len(bad) > NAMED:
        lines.append(f"  and {len(bad) - NAMED} more, {len(bad)} in all: {_counted(bad.values())}")
    missing = [parse_part(path).file for path, reason in bad.items() if reason == MISSING]
    nearest = next(filter(None, (_nearest(data_folder, path) for path in list(dict.fromkeys(missing))[:TRIED])), "")
    if nearest:
        lines.append(f"{nearest}: name the files as the metadata does, and put them where it says")
    elif len(missing) > NAMED or len(missing) == total:
        lines.append(_what_is_there(data_folder, missing[0]))
    raise InputError("\n".join(lines))


def _counted(reasons):
    """Count the most frequent reasons, without what differs from clip to clip: "8700 no such file, 32 empty file"."""
    kinds = collections.Counter(re.split(r"[(:;,\d]", reason)[0].strip() for reason in reasons)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) + (", ..." if len(kinds) > 5 else "")


def _nearest(data_folder, path):
    """Say which file is there that a missing one may be, under another name or one folder off; "" if there is none."""
    folder, name = os.path.split(os.path.relpath(os.path.join(data_folder, path), data_folder))
    parts = [part for part in folder.split(os.sep) if part]
    for place in _places(data_folder, parts):
        found = _same_name(place, name)
        if found and os.path.exists(os.path.join(place, found)):  # not a link to nothing
            return f"{os.path.relpath(os.path.join(place, found), data_folder)} exists, {path} does not"
    return ""


def _places(data_folder, parts):
    """Yield the folders to look in: the right one, with one part left out, one level up, and with one part more."""
    yield _folder(data_folder, parts)
    for i in range(len(parts)):
        yield _folder(data_folder, parts[:i] + parts[i + 1 :])
    yield _folder(os.path.join(data_folder, os.pardir), parts)
    for i in range(len(parts) + 1):
        above = _folder(data_folder, parts[:i])
        for name in _entries(above, folders=True):
            yield _folder(os.path.join(above, name), parts[i:])


def _folder(above, parts):
    """Return the path of a folder, each part of it under the name that it has there."""
    for part in parts:
        found = part if os.path.isdir(os.path.join(above, part)) else _same_name(above, part)
        above = os.path.join(above, found or part)
    return above


def _same_name(folder, name):
    """Return the entry of a folder that differs from `name` at most in case, accents' code or an audio extension."""
    stem, extension = os.path.splitext(_key(name))
    entries = [name] if os.path.lexists(os.path.join(folder, name)) else _entries(folder)
    by_key = {_key(entry): entry for entry in reversed(entries)}
    names = [stem + extension, *(stem + other for other in sorted(READABLE) if extension in READABLE)]
    return next((by_key[name] for name in names if name in by_key), "")


def _key(name):
    return unicodedata.normalize("NFC", name).casefold()


def _entries(folder, folders=False):
    """List the names in a folder, sorted, without clutter, on request only the folders; none where it can't be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not is_clutter(e.name) and (not folders or e.is_dir()))
    except OSError:
        return []


def _what_is_there(data_folder, path):
    """Say what the folder of a missing file holds, or the nearest folder above it that is there."""
    folder = os.path.dirname(os.path.join(data_folder, path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return f"nothing like {path} is there; {folder} holds {listing(folder)}"
