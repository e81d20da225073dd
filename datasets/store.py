"""The audio store: every clip of a dataset is decoded, mixed to mono, resampled and checked once, for all runs.

The samples of all clips lie end to end in one int16 file, which is mapped into memory, and an index says where each
clip begins, how long it is and what its peak was. Later runs, encoders and evaluations open the pair in milliseconds
and read crops as slices; the operating system shares the pages among all workers and runs. A clip is kept scaled to
the full int16 range, so that a faint one loses no more than a loud one, and comes back scaled to a peak of 0.9.

    <store_folder>/<name>-<rate>Hz-<hash of data folder, rate and paths>/
        samples-<fingerprint>.int16   one clip after the other, little-endian
        index-<fingerprint>.npz       offsets, lengths, peaks, crc32; sizes and mtimes of the sources; bad, reasons
        store.json                    size and CRC-32 of the index; written last: where it is missing, there is no store

The fingerprint covers the size and the time of every source file, so that a changed file is noticed. A build writes
`.writing-*` files aside and renames them, store.json last, under a lock that the operating system releases if the
process dies: a killed build leaves nothing that looks finished, and of two runs that start together one builds.

A store's size, its index and store.json are checked when it is opened, and it is built again where they are damaged.
That would miss a flipped bit among the samples, and to read all of them first takes minutes for a large data set. So
the CRC-32 of a clip is checked when a run first touches it: for 4 s of sound 0.05 ms, where a crop of 2 s takes 0.02,
once a clip and run, since the workers share what they know. A clip that fails is decoded from its source file, and
store.json is deleted: the next start builds the store again.

Why not SpeechBrain's CachedDynamicItem, or its HDF5 form? Those fill a cache item by item while the first epoch
runs, inside the workers: that epoch is as slow as ever, a damaged clip turns up in the middle of it, every worker
holds its own copy or waits for the others, and an item is a whole clip, of which a crop needs a fraction.

Shapes: c = clips, n = samples of one clip at `sample_rate`.
"""

import collections
import concurrent.futures
import contextlib
import functools
import glob
import hashlib
import io
import json
import logging
import mmap
import os
import shutil
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

from datasets.audio import BadAudio, load_mono, mono_length, open_audio, quantise, resampled_length, to_float
from utils.io.arrays import DamagedArrays, read_arrays
from utils.io.errors import InputError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
SAMPLE_TYPE = np.dtype("<i2")
INDEX_KEYS = ("fingerprint", "offsets", "lengths", "peaks", "crc32", "sizes", "mtimes", "bad", "reasons")
LOOK_AHEAD = 4  # clips decoded or waiting, per thread: bounds the memory of a build
LIVE_CLIPS_KEPT = 4  # decoded clips that LiveAudio remembers: the two views of one clip decode it once
UNCHECKED, GOOD, DAMAGED = range(3)  # what a run knows of a clip's samples
CLIPS_MEASURED = 256  # of these the headers are read to tell the size of a store before it is built


def open_store(
    data_folder,
    wav_paths,
    sample_rate=16000,
    store_folder="~/.cache/continual-sound",
    name="audio",
    skip_bad_audio=False,
    progress=True,
):
    """Open the audio store of these clips; build it first where there is none, or where it is stale or damaged.

    Parameters
    ----------
    data_folder : str
        Folder of the dataset. It may be read-only.
    wav_paths : sequence of str
        Audio files, relative to `data_folder` or absolute. Their order is the clip index of what is returned; the
        same files in another order share one store.
    sample_rate : int
        Rate of the samples, in Hz.
    store_folder : str or None
        Where the stores are; None decodes each clip when it is read, with the same samples.
    name : str
        How the folder's name begins: the dataset.
    skip_bad_audio : bool
        Go on without missing, unreadable, empty and non-finite clips, and say how many they are.
    progress : bool
        Show a progress bar, where stderr is a terminal.

    Returns
    -------
    AudioStore or LiveAudio
        Of one interface; see `Clips`.

    Raises
    ------
    InputError
        Where `data_folder` is missing, clips are bad (all are listed), none is good, `store_folder` can't be written
        or has no room, or holds a store of another rate or format.
    """
    data_folder = os.path.realpath(os.path.expanduser(data_folder))
    if not os.path.isdir(data_folder):
        raise InputError(f"data_folder={data_folder} is not a folder: set it to where the dataset is")
    paths = [os.fspath(path) for path in wav_paths]
    if not paths:
        raise InputError(f"No clips to read from data_folder={data_folder}: the list of audio files is empty")
    if store_folder is None:
        clips = LiveAudio(data_folder, paths, sample_rate, progress)
    else:
        plan = _Plan.make(data_folder, paths, sample_rate, os.path.expanduser(store_folder), name)
        index = _load_or_build(plan, skip_bad_audio, progress)
        clips = AudioStore(plan, paths, index)
    _refuse_bad(clips.bad, len(set(paths)), skip_bad_audio)
    if clips.bad:
        logger.warning("%d of %d clips cannot be used and are skipped", len(clips.bad), len(set(paths)))
    return clips


class Clips:
    """What AudioStore and LiveAudio have in common.

    Attributes
    ----------
    paths : list of str
        As given to `open_store`.
    lengths : np.ndarray
        int64 [c], samples at `sample_rate`; 0 for a bad clip.
    ids : np.ndarray
        str [c], one per clip, that changes with the clip's content: the key of cached embeddings.
    contents : list of str
        What each clip holds, on whatever machine and wherever its file is; see the classes.
    peaks : np.ndarray
        float32 [c], the largest amplitude of the mono clip before it was scaled; 0 for a silent or a bad clip.
    bad : dict
        Path -> reason, for the clips that can't be used.
    sample_rate : int
        In Hz.
    """

    def __init__(self, paths, lengths, bad, sample_rate):
        self.paths, self.lengths, self.bad, self.sample_rate = paths, lengths, bad, sample_rate

    def __len__(self):
        return len(self.paths)

    def read(self, clip, start=0, stop=None):
        """Samples `start` to `stop` of a clip, scaled so that the peak of the whole clip is 0.9.

        Parameters
        ----------
        clip : int
            Index into `paths`.
        start, stop : int
            In samples, `0 <= start <= stop <= lengths[clip]`; `stop=None` reads to the end.

        Returns
        -------
        np.ndarray
            float32 [stop - start], a copy. A silent clip is zeros.

        Raises
        ------
        IndexError
            Where the slice reaches beyond the clip.
        InputError
            Where the clip is bad.
        """
        length = int(self.lengths[clip])
        stop = length if stop is None else stop
        if not 0 <= start <= stop <= length:
            raise IndexError(f"samples {start} to {stop} of {self.paths[clip]}, which has {length}")
        if length == 0:
            path = self.paths[clip]
            raise BadAudio(path, self.bad.get(path, "no samples"))
        return to_float(self._slice(clip, start, stop))

    def _slice(self, clip, start, stop):
        """int16 [stop - start]."""
        raise NotImplementedError


class AudioStore(Clips):
    """The clips of a finished store. It travels to DataLoader workers without its samples, which each maps again."""

    def __init__(self, plan, paths, index):
        row_of = {path: row for row, path in enumerate(plan.paths)}
        rows = np.array([row_of[path] for path in paths], dtype=np.int64)  # clip -> row of the index
        bad = {plan.paths[row]: str(reason) for row, reason in zip(index["bad"], index["reasons"], strict=True)}
        super().__init__(paths, index["lengths"][rows], bad, plan.sample_rate)
        self.peaks, self.crc32, self.offsets = (index[key][rows] for key in ("peaks", "crc32", "offsets"))
        self.folder, self.samples_path, self.manifest_path = plan.folder, plan.samples_path, plan.manifest_path
        self.data_folder, self._decoded = plan.data_folder, {}  # clip -> int16 [n], of those that are damaged here
        self._open()  # at once: it stays readable even if a later build unlinks the file

    @functools.cached_property
    def ids(self):
        """str [c]: path and CRC-32 of the samples."""
        return np.array([f"{path}:{crc:08x}" for path, crc in zip(self.paths, self.crc32.tolist(), strict=True)])

    @property
    def contents(self):
        """list of str [c]: length and CRC-32 of the samples."""
        return [f"{n}:{crc:08x}" for n, crc in zip(self.lengths.tolist(), self.crc32.tolist(), strict=True)]

    def _open(self):
        try:
            mapped = np.memmap(self.samples_path, dtype=SAMPLE_TYPE, mode="r")
        except FileNotFoundError as err:
            raise InputError(
                f"The audio store {self.folder} was built again, from other files, by another run: start this one again"
            ) from err
        self._samples = np.asarray(mapped)  # a plain array slices faster than np.memmap
        self._checked = mmap.mmap(-1, len(self))  # [c] UNCHECKED, GOOD or DAMAGED; workers that are forked share it

    def _slice(self, clip, start, stop):
        if self._samples is None:
            self._open()
        if self._checked[clip] != GOOD and not self._check(clip):
            return self._decode(clip)[start:stop]
        offset = int(self.offsets[clip])
        return self._samples[offset + start : offset + stop]

    def _check(self, clip):
        """Whether a clip's samples are those that were written."""
        offset, known = int(self.offsets[clip]), self._checked[clip]
        if zlib.crc32(self._samples[offset : offset + int(self.lengths[clip])]) == self.crc32[clip]:
            self._checked[clip] = GOOD
            return True
        if known == UNCHECKED:
            logger.warning("Audio store %s: %s is damaged, and is decoded from its file; the next start builds the "
                           "store again", self.folder, self.paths[clip])  # fmt: skip
            with contextlib.suppress(OSError):  # it may be on a disk that can't be written: then each run finds it anew
                os.unlink(self.manifest_path)
        self._checked[clip] = DAMAGED
        return False

    def _decode(self, clip):
        """The samples of a clip that is damaged here: int16 [n]."""
        if clip not in self._decoded:
            path = self.paths[clip]
            samples, _ = quantise(load_mono(os.path.join(self.data_folder, path), self.sample_rate))
            if zlib.crc32(samples) != self.crc32[clip]:
                raise InputError(f"The audio store {self.folder} is damaged, and {path} has changed: start again")
            self._decoded[clip] = samples
        return self._decoded[clip]

    def __getstate__(self):
        return {**self.__dict__, "_samples": None, "_checked": None, "_decoded": {}}


class LiveAudio(Clips):
    """The same clips with the same samples, decoded when they are read.

    At opening every file is opened and its length taken, without decoding it where its header can be trusted (see
    `datasets.audio.mono_length`). So damage in the middle of a file, which the store finds at once, is an error here
    when the clip is read. `peaks` decodes every clip, when first asked for.
    """

    def __init__(self, data_folder, paths, sample_rate, progress=True):
        self.files = [os.path.join(data_folder, path) for path in paths]
        self._root = data_folder
        self._sizes, self._mtimes = _stat(self.files)
        lengths, bad = np.zeros(len(paths), dtype=np.int64), {}
        checked = _parallel(functools.partial(_length_of, sample_rate=sample_rate), self.files)
        for clip, (length, reason) in enumerate(_bar(checked, len(paths), "checking audio", progress)):
            lengths[clip] = length
            if reason:
                bad[paths[clip]] = reason
        super().__init__(paths, lengths, bad, sample_rate)
        self._recent = collections.OrderedDict()  # clip -> (int16 [n], peak), the latest last

    @functools.cached_property
    def ids(self):
        """str [c]: path, rate, and the source file's size and time."""
        stats = zip(self.paths, self._sizes.tolist(), self._mtimes.tolist(), strict=True)
        return np.array([f"{path}@{self.sample_rate}:{size}:{mtime}" for path, size, mtime in stats])

    @property
    def contents(self):
        """list of str [c]: path and size of the source file and length of the samples, which nobody has decoded."""
        clips = zip(self.paths, self._sizes.tolist(), self.lengths.tolist(), strict=True)
        return [f"{os.path.relpath(path, self._root) if os.path.isabs(path) else path}:{s}:{n}" for path, s, n in clips]

    @functools.cached_property
    def peaks(self):
        """float32 [c]."""
        peaks = [self._decode(clip)[1] if self.lengths[clip] else 0.0 for clip in range(len(self))]
        return np.array(peaks, dtype=np.float32)

    def _decode(self, clip):
        if clip in self._recent:
            self._recent.move_to_end(clip)
            return self._recent[clip]
        samples, peak = quantise(load_mono(self.files[clip], self.sample_rate))
        if len(samples) != self.lengths[clip]:
            raise BadAudio(self.files[clip], f"{len(samples)} samples; there were {self.lengths[clip]} at the start")
        self._recent[clip] = samples, peak
        if len(self._recent) > LIVE_CLIPS_KEPT:
            self._recent.popitem(last=False)
        return samples, peak

    def _slice(self, clip, start, stop):
        return self._decode(clip)[0][start:stop]

    def __getstate__(self):
        return {**self.__dict__, "_recent": collections.OrderedDict()}


# Where a store is, and what it must hold


@dataclass
class _Plan:
    """Where the store of these clips is, and the state of their files. Rows are in the order of the sorted paths."""

    data_folder: str
    paths: list  # [rows], sorted, each once
    sample_rate: int
    store_folder: str
    folder: str
    sizes: np.ndarray  # int64 [rows], bytes; -1 for a missing file
    mtimes: np.ndarray  # int64 [rows], nanoseconds
    fingerprint: str

    @classmethod
    def make(cls, data_folder, wav_paths, sample_rate, store_folder, name):
        paths = sorted(set(wav_paths))
        place = _digest([data_folder, str(sample_rate), *paths])
        folder = os.path.join(store_folder, f"{name}-{sample_rate}Hz-{place}")
        sizes, mtimes = _stat([os.path.join(data_folder, path) for path in paths])
        state = [place, str(FORMAT_VERSION), *map(str, sizes.tolist()), *map(str, mtimes.tolist())]
        return cls(data_folder, paths, sample_rate, store_folder, folder, sizes, mtimes, _digest(state))

    @property
    def files(self):
        return [os.path.join(self.data_folder, path) for path in self.paths]

    @property
    def samples_path(self):
        return os.path.join(self.folder, f"samples-{self.fingerprint}.int16")

    @property
    def index_path(self):
        return os.path.join(self.folder, f"index-{self.fingerprint}.npz")

    @property
    def manifest_path(self):
        return os.path.join(self.folder, "store.json")


def _digest(parts):
    return hashlib.blake2b(os.fsencode("\0".join(parts)), digest_size=6).hexdigest()


def _stat(files):
    """Sizes in bytes and times in ns, int64 [c] each; -1 for a file that isn't there."""
    sizes, mtimes = [], []  # lists: an array is slow to fill one by one
    for file in files:
        try:
            stat = os.stat(file)
            size, mtime = stat.st_size, stat.st_mtime_ns
        except (OSError, ValueError):
            size = mtime = -1
        sizes.append(size)
        mtimes.append(mtime)
    return np.array(sizes, dtype=np.int64), np.array(mtimes, dtype=np.int64)


# Opening


class _Unusable(Exception):
    """There is no store to open. `level` is how loudly to say why: None for a store that was never built."""

    def __init__(self, why="", level=None):
        super().__init__(why)
        self.level = level


def _load_or_build(plan, skip_bad_audio, progress):
    with contextlib.suppress(_Unusable):
        return _load(plan)  # without the lock: a finished store may be on a disk that can't be written
    try:
        os.makedirs(plan.folder, exist_ok=True)
        lock = filelock.FileLock(os.path.join(plan.folder, ".lock"))
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            logger.info("Another run is building the audio store %s: waiting for it", plan.folder)
            lock.acquire()
    except (OSError, NotImplementedError) as err:  # the second: a file system without locks
        raise _cannot_write(plan, err) from err
    try:
        return _load(plan)  # it may be there by now
    except _Unusable as err:
        if err.level:
            logger.log(err.level, "Audio store %s: %s; building it again", plan.folder, err)
        return _build(plan, skip_bad_audio, progress)
    finally:
        lock.release()


def _load(plan):
    """The index of a finished store: a dict of arrays. Raises _Unusable where there is none, or not the right one."""
    manifest = _load_manifest(plan)
    if manifest.get("fingerprint") != plan.fingerprint:
        raise _Unusable(_what_changed(plan, manifest), logging.INFO)
    expected = manifest.get("samples_bytes")
    try:
        found = os.path.getsize(plan.samples_path)
    except OSError as err:
        raise _Unusable("its samples file is missing", logging.WARNING) from err
    if found != expected:
        raise _Unusable(f"its samples file has {found} bytes instead of {expected}", logging.WARNING)
    index = _read_index(plan.index_path, manifest.get("index_crc32"))
    ends = np.cumsum(index["lengths"])
    if (
        len(ends) != len(plan.paths)
        or str(index["fingerprint"]) != plan.fingerprint
        or not np.array_equal(index["offsets"], ends - index["lengths"])
        or ends[-1] * SAMPLE_TYPE.itemsize != found
    ):
        raise _Unusable("its index doesn't match its samples", logging.WARNING)
    return index


def _load_manifest(plan):
    try:
        with open(plan.manifest_path, encoding="utf-8") as file:
            manifest = json.load(file)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise _Unusable from err
    except (OSError, ValueError, RecursionError) as err:
        raise _Unusable("its store.json can't be read", logging.WARNING) from err
    wanted = {"format_version": FORMAT_VERSION, "sample_rate": plan.sample_rate}
    whole = isinstance(manifest, dict) and manifest.get("crc32", _checksum(manifest)) == _checksum(manifest)
    if not whole or not wanted.keys() <= manifest.keys():
        raise _Unusable("its store.json is damaged", logging.WARNING)
    for key, value in wanted.items():
        if manifest[key] != value:
            raise InputError(
                f"The audio store {plan.folder} has {key}={manifest[key]}, but {value} is needed: "
                "delete that folder, or set another store_folder"
            )
    return manifest


def _checksum(manifest):
    """CRC-32 of a manifest's other entries."""
    return zlib.crc32(json.dumps({k: v for k, v in manifest.items() if k != "crc32"}, sort_keys=True).encode())


def _read_index(path, crc32=None):
    try:
        if crc32 not in (None, zlib.crc32(Path(path).read_bytes())):  # a store from before there was this sum has none
            raise DamagedArrays("another checksum")
        index = read_arrays(path, INDEX_KEYS)
    except (OSError, DamagedArrays) as err:
        raise _Unusable("its index is missing or damaged", logging.WARNING) from err
    if not _is_sound(index):
        raise _Unusable("its index is missing or damaged", logging.WARNING)
    return index


def _is_sound(index):
    """Whether the arrays of an index have the types and sizes that they were written with."""
    shape, bad = index["lengths"].shape, index["bad"]
    kinds = dict.fromkeys(("offsets", "lengths", "sizes", "mtimes"), np.int64)
    kinds |= {"peaks": np.float32, "crc32": np.uint32}
    return (
        len(shape) == 1
        and all(index[key].shape == shape and index[key].dtype == kind for key, kind in kinds.items())
        and (index["lengths"] >= 0).all()
        and bad.dtype == np.int64
        and bad.shape == index["reasons"].shape
        and ((bad >= 0) & (bad < shape[0])).all()
    )


def _what_changed(plan, manifest):
    with contextlib.suppress(_Unusable):
        old = _read_index(os.path.join(plan.folder, f"index-{manifest.get('fingerprint')}.npz"))
        if len(old["sizes"]) == len(plan.sizes):
            changed = np.flatnonzero((old["sizes"] != plan.sizes) | (old["mtimes"] != plan.mtimes))
            if len(changed):
                return f"{len(changed)} source files have changed ({plan.paths[changed[0]]} is the first)"
    return "the source files have changed"


def _refuse_bad(bad, total, skip_bad_audio):
    if len(bad) == total:
        hint = f"is the data folder right? All {total} clips cannot be used"
    elif bad and not skip_bad_audio:
        hint = f"{len(bad)} of {total} clips cannot be used: mend them, or go on without them by --skip_bad_audio=True"
    else:
        return
    raise InputError("\n".join([hint, *(f"  {path}: {reason}" for path, reason in bad.items())]))


# Building


def _build(plan, skip_bad_audio, progress):
    """Write a store, the caller holding its lock, and return its index."""
    started = time.monotonic()
    samples_aside, index_aside, manifest_aside = (
        os.path.join(plan.folder, f".writing-{part}") for part in ("samples", "index", "manifest")
    )
    try:
        _sweep(plan.folder, ".writing-*")  # of a build that was killed
        _check_room(plan)
        index = _write_samples(plan, samples_aside, progress)
        bad = dict(zip((plan.paths[row] for row in index["bad"]), index["reasons"].tolist(), strict=True))
        _refuse_bad(bad, len(plan.paths), skip_bad_audio)
        packed = io.BytesIO()
        np.savez(packed, **index)
        with _durable(index_aside) as file:
            file.write(packed.getbuffer())
        size = int(index["lengths"].sum()) * SAMPLE_TYPE.itemsize
        manifest = {"format_version": FORMAT_VERSION, "sample_rate": plan.sample_rate, "clips": len(plan.paths)}
        manifest |= {"fingerprint": plan.fingerprint, "samples_bytes": size, "data_folder": plan.data_folder}
        manifest |= {"samples": os.path.basename(plan.samples_path), "index": os.path.basename(plan.index_path)}
        manifest["index_crc32"] = zlib.crc32(packed.getbuffer())
        manifest["crc32"] = _checksum(manifest)
        with _durable(manifest_aside) as file:
            file.write(json.dumps(manifest, indent=1).encode())
        _sweep(plan.folder, "store.json")  # a damaged one must not vouch for half of the new pair
        os.replace(samples_aside, plan.samples_path)
        os.replace(index_aside, plan.index_path)
        os.replace(manifest_aside, plan.manifest_path)
    except OSError as err:
        raise _cannot_write(plan, err) from err
    finally:
        with contextlib.suppress(OSError):
            _sweep(plan.folder, ".writing-*")
    _sweep(plan.folder, "samples-*", "index-*", keep=(plan.samples_path, plan.index_path))
    hours, seconds = size / SAMPLE_TYPE.itemsize / plan.sample_rate / 3600, time.monotonic() - started
    clips = len(plan.paths) - len(bad)
    logger.info("Audio store %s: %d clips, %.2f hours, built in %.1f s", plan.folder, clips, hours, seconds)
    return index


def _write_samples(plan, path, progress):
    """Decode every clip into `path`; the index comes back."""
    rows = len(plan.paths)
    lengths, crc32 = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.uint32)
    peaks = np.zeros(rows, dtype=np.float32)
    bad = {}
    decoded = _parallel(functools.partial(_decode, sample_rate=plan.sample_rate), plan.files)
    with contextlib.closing(decoded), _durable(path) as file:
        for row, (samples, peak, crc, reason) in enumerate(_bar(decoded, rows, "audio store", progress)):
            if reason:
                bad[row] = reason
                continue
            file.write(samples.astype(SAMPLE_TYPE, copy=False))
            lengths[row], peaks[row], crc32[row] = len(samples), peak, crc
    return {
        "fingerprint": np.array(plan.fingerprint),
        "offsets": np.cumsum(lengths) - lengths,
        "lengths": lengths,
        "peaks": peaks,
        "crc32": crc32,
        "sizes": plan.sizes,
        "mtimes": plan.mtimes,
        "bad": np.array(list(bad), dtype=np.int64),
        "reasons": np.array(list(bad.values()), dtype=str),
    }


def _decode(path, sample_rate):
    """(int16 [n], peak, CRC-32, "") of a good clip, (None, 0.0, 0, reason) of a bad one."""
    try:
        samples, peak = quantise(load_mono(path, sample_rate))
        return samples, peak, zlib.crc32(samples), ""
    except BadAudio as err:
        return None, 0.0, 0, err.reason


def _length_of(path, sample_rate):
    """(length, "") of a good clip, (0, reason) of a bad one."""
    try:
        return mono_length(path, sample_rate), ""
    except BadAudio as err:
        return 0, err.reason


def _parallel(function, items):
    """Yield `function(item)` in order, computed in threads a bounded number of items ahead.

    Threads, not processes: soundfile and soxr let the interpreter's lock go while they work, nothing need be pickled,
    and no process is forked or started beside those of the data loaders.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= LOOK_AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _bar(items, total, what, progress):
    shown = progress and sys.stderr is not None and sys.stderr.isatty()
    return tqdm(items, total=total, desc=what, unit="clip", disable=not shown, leave=False, dynamic_ncols=True)


@contextlib.contextmanager
def _durable(path):
    """A binary file whose bytes are on the disk when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sweep(folder, *patterns, keep=()):
    for pattern in patterns:
        for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
            if path not in keep:
                os.unlink(path)


def _needed_bytes(plan):
    """About how large the samples will be, from the headers of at most CLIPS_MEASURED clips."""
    lengths = []
    for file in plan.files[:: -(-len(plan.paths) // CLIPS_MEASURED)]:
        with contextlib.suppress(BadAudio), open_audio(file) as audio:
            lengths.append(resampled_length(audio.frames, audio.samplerate, plan.sample_rate))
    if not lengths:
        return 0
    mean = np.minimum(lengths, 10 * np.median(lengths)).mean()  # a damaged header may promise anything
    return int(mean * len(plan.paths)) * SAMPLE_TYPE.itemsize


def _check_room(plan):
    needed, free = _needed_bytes(plan), shutil.disk_usage(plan.folder).free
    if free < 0.9 * needed:  # an estimate; whether the rest fits, writing will tell
        raise OSError(f"only {_megabytes(free)} are free")


def _cannot_write(plan, err):
    return InputError(
        f"The audio store can't be written below store_folder={plan.store_folder} ({err.strerror or err}): it needs "
        f"about {_megabytes(_needed_bytes(plan))}. Set store_folder to a folder with that room, or to null to decode "
        "on the fly"
    )


def _megabytes(count):
    return f"{max(count / 1e6, 0.1):,.1f} MB"
