"""The files of an audio store: where they are, what they must hold, and how they are read and checked.

    <store_folder>/<name>-<rate>Hz-<hash of data folder, rate and paths>/
        samples-<fingerprint>.int16   one clip after the other, little-endian
        index-<fingerprint>.npz       offsets, lengths, peaks, crc32; sizes and mtimes of the sources; the rows that are
                                      bad, are cut off (but stored), or whose channels cancel
        store.json                    size of the samples, CRC-32 of the index; written last: no store without it

The fingerprint covers the size and the modification time of every source file, so that a changed file is noticed.
"""

import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.parts import parse_part
from utils.io.arrays import DamagedArrays, read_arrays
from utils.io.errors import InputError
from utils.io.files import read_json

FORMAT_VERSION = 1
SAMPLE_TYPE = np.dtype("<i2")
INDEX_VERSION = 2  # 2: looks for files that are cut off and for channels that cancel
INDEX_KEYS = ("fingerprint", "offsets", "lengths", "peaks", "crc32", "sizes", "mtimes", "bad", "reasons", "cut",
              "cut_reasons", "cancelled")  # fmt: skip


@dataclass
class StorePlan:
    """Where the store of these clips is, and the state of their files. Rows are in the order of the sorted paths."""

    data_folder: str
    paths: list[str]  # [rows], sorted, each once
    sample_rate: int
    store_folder: str
    folder: str
    sizes: np.ndarray  # int64 [rows], bytes; -1 for a missing file
    mtimes: np.ndarray  # int64 [rows], nanoseconds
    fingerprint: str

    @classmethod
    def make(cls, data_folder: str, wav_paths: Sequence[str], sample_rate: int, store_folder: str, name: str):
        paths = sorted(set(wav_paths))
        place = _digest([data_folder, str(sample_rate), *paths])
        folder = os.path.join(store_folder, f"{name}-{sample_rate}Hz-{place}")
        sizes, mtimes = stat_files([os.path.join(data_folder, path) for path in paths])
        state = [place, str(FORMAT_VERSION), *map(str, sizes.tolist()), *map(str, mtimes.tolist())]
        return cls(data_folder, paths, sample_rate, store_folder, folder, sizes, mtimes, _digest(state))

    @property
    def files(self) -> list[str]:
        return [os.path.join(self.data_folder, path) for path in self.paths]

    def named(self, rows: np.ndarray, reasons: np.ndarray) -> dict[str, str]:
        """Return the paths of rows of an index, with their reasons."""
        return {self.paths[row]: str(reason) for row, reason in zip(rows, reasons, strict=True)}

    @property
    def samples_path(self) -> str:
        return os.path.join(self.folder, f"samples-{self.fingerprint}.int16")

    @property
    def index_path(self) -> str:
        return os.path.join(self.folder, f"index-{self.fingerprint}.npz")

    @property
    def manifest_path(self) -> str:
        return os.path.join(self.folder, "store.json")


def _digest(parts):
    return hashlib.blake2b(os.fsencode("\0".join(parts)), digest_size=6).hexdigest()


def stat_files(files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the files' sizes in bytes and modification times in ns, int64 [c] each; -1 for a missing file.

    Of a part of a file (see `datasets.parts`) these are the file's.
    """
    sizes, mtimes = [], []  # lists, because filling an array one by one is slow
    for file in files:
        try:
            stat = os.stat(parse_part(file).file)
            size, mtime = stat.st_size, stat.st_mtime_ns
        except (OSError, ValueError):
            size = mtime = -1
        sizes.append(size)
        mtimes.append(mtime)
    return np.array(sizes, dtype=np.int64), np.array(mtimes, dtype=np.int64)


class UnusableStore(Exception):
    """There is no store that can be opened. `level` is the level at which to log why; None: there never was one."""

    def __init__(self, why: str = "", level: int | None = None):
        super().__init__(why)
        self.level = level


def load_index(plan: StorePlan) -> dict[str, np.ndarray]:
    """Check a store's files, the samples by their size alone, and read its index.

    Raises
    ------
    UnusableStore
        There is no store, it is damaged, or its source files have changed.
    InputError
        It has another sample rate or format, or this user may not read it.
    """
    try:
        return _load_index(plan)
    except PermissionError as error:
        raise InputError(
            f"The audio store {plan.folder} can't be read ({error.strerror}: {error.filename}): it may be another "
            f"user's. Have it made readable (chmod -R a+rX {plan.store_folder}), or set store_folder to a folder of "
            "your own"
        ) from error


def _load_index(plan):
    manifest = _load_manifest(plan)
    if manifest.get("fingerprint") != plan.fingerprint:
        raise UnusableStore(_what_changed(plan, manifest), logging.INFO)
    if manifest.get("index_version") != INDEX_VERSION:
        raise UnusableStore("an earlier version built it, which checked clips for less", logging.INFO)
    expected = manifest.get("samples_bytes")
    try:
        with open(plan.samples_path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
    except PermissionError:
        raise
    except OSError as error:
        raise UnusableStore("its samples file is missing", logging.WARNING) from error
    if found != expected:
        raise UnusableStore(f"its samples file has {found} bytes instead of {expected}", logging.WARNING)
    index = _read_index(plan.index_path, manifest.get("index_crc32"))
    ends = np.cumsum(index["lengths"])
    if (
        len(ends) != len(plan.paths)
        or str(index["fingerprint"]) != plan.fingerprint
        or not np.array_equal(index["offsets"], ends - index["lengths"])
        or ends[-1] * SAMPLE_TYPE.itemsize != found
    ):
        raise UnusableStore("its index doesn't match its samples", logging.WARNING)
    return index


def _load_manifest(plan):
    try:
        manifest = read_json(plan.manifest_path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnusableStore from error
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise UnusableStore(f"its store.json is damaged ({error})", logging.WARNING) from error
    wanted = {"format_version": FORMAT_VERSION, "sample_rate": plan.sample_rate}
    if not wanted.keys() <= manifest.keys():
        raise UnusableStore("its store.json is damaged (keys are missing)", logging.WARNING)
    for key, value in wanted.items():
        if manifest[key] != value:
            raise InputError(
                f"The audio store {plan.folder} has {key}={manifest[key]}, but {value} is needed: "
                "delete that folder, or set another store_folder"
            )
    return manifest


def _read_index(path, crc32=None):
    try:
        if crc32 not in (None, zlib.crc32(Path(path).read_bytes())):  # the first versions wrote no checksum
            raise DamagedArrays("its checksum differs")
        index = read_arrays(path, INDEX_KEYS)
    except PermissionError:
        raise
    except (OSError, DamagedArrays) as error:
        raise UnusableStore("its index is missing or damaged", logging.WARNING) from error
    if not _is_sound(index):
        raise UnusableStore("its index is missing or damaged", logging.WARNING)
    return index


def _is_sound(index):
    """Return whether the arrays of an index have the types and sizes that a build writes."""
    shape = index["lengths"].shape
    kinds = dict.fromkeys(("offsets", "lengths", "sizes", "mtimes"), np.int64)
    kinds |= {"peaks": np.float32, "crc32": np.uint32}
    return (
        len(shape) == 1
        and all(index[key].shape == shape and index[key].dtype == kind for key, kind in kinds.items())
        and (index["lengths"] >= 0).all()
        and index["bad"].shape == index["reasons"].shape
        and index["cut"].shape == index["cut_reasons"].shape
        and all(_are_rows(index[key], shape[0]) for key in ("bad", "cut", "cancelled"))
    )


def _are_rows(numbers, n_rows):
    return numbers.dtype == np.int64 and numbers.ndim == 1 and bool(((numbers >= 0) & (numbers < n_rows)).all())


def _what_changed(plan, manifest):
    """Say how many source files differ from those of an earlier build."""
    with contextlib.suppress(UnusableStore):
        old = _read_index(os.path.join(plan.folder, f"index-{manifest.get('fingerprint')}.npz"))
        if len(old["sizes"]) == len(plan.sizes):
            changed = np.flatnonzero((old["sizes"] != plan.sizes) | (old["mtimes"] != plan.mtimes))
            if len(changed):
                return f"{len(changed)} source files have changed ({plan.paths[changed[0]]} is the first)"
    return "the source files have changed"
