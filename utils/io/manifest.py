"""A list of a folder's files with their sizes and checksums, by which damage to any of them is found."""

import functools
import json
import os
import zlib

MANIFEST = "manifest.json"


def write_manifest(folder):
    """Write the size and the CRC-32 of each file of a folder into its manifest.

    Parameters
    ----------
    folder : pathlib.Path
        Without subfolders.
    """
    (folder / MANIFEST).write_text(json.dumps({file.name: _state(file) for file in folder.iterdir()}, indent=1))


def find_damage(folder, names=None):
    """Compare a folder's files with its manifest.

    Parameters
    ----------
    folder : pathlib.Path
    names : sequence of str, optional
        Compare these files only; None compares all that are in the manifest.

    Returns
    -------
    str
        The first damaged file and what is wrong with it; empty if none is, or if there is no manifest.
    """
    if not (folder / MANIFEST).is_file():
        return ""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        expected = {name: manifest[name] for name in (manifest if names is None else names)}
        if not expected:
            raise ValueError("it lists no file")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{MANIFEST}: {error}"
    for name, state in expected.items():
        if not (folder / name).is_file():
            return f"{name}: missing"
        found = _state(folder / name)
        if found != state:
            return f"{name}: another {'checksum' if found[:1] == state[:1] else 'size'} than when it was written"
    return ""


def _state(path):
    """Return [size in bytes, CRC-32] of a file."""
    stat = os.stat(path)
    return [stat.st_size, _crc32(str(path), stat.st_size, stat.st_mtime_ns)]


@functools.cache
def _crc32(path, size, mtime):
    """Compute a file's CRC-32, once in a process for each of its states: 3 GB/s, or the speed of the disk."""
    del size, mtime
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
