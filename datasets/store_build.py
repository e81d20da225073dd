"""Build an audio store, once, whichever of several runs starts first and whenever one of them is killed.

A build holds a lock that the operating system releases if the process dies. Each file is written aside and renamed,
store.json last: a killed build leaves nothing that looks finished, and where a file system has no locks, two builds at
a time leave one whole store.
"""

import contextlib
import functools
import glob
import io
import itertools
import logging
import os
import shutil
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.audio import BadAudio, decode, map_files, n_samples, quantise
from datasets.bad_audio import refuse_bad
from datasets.parts import Readers
from datasets.store_files import FORMAT_VERSION, INDEX_VERSION, SAMPLE_TYPE, StorePlan, UnusableStore, load_index
from utils.io.errors import InputError
from utils.io.files import atomic_file, write_atomically, write_json
from utils.io.locks import Busy, FolderLock

logger = logging.getLogger(__name__)

FIRST_WAITS, NEXT_WAITS = (10.0, 50.0), 300.0  # seconds between two lines that say what is waited for
CLIPS_MEASURED = 256  # headers that are read to estimate the size of a store before it is built


def load_or_build(plan: StorePlan, skip_bad_audio: bool, keep_cut: bool, progress: bool) -> dict[str, np.ndarray]:
    """Return the index of the plan's store; build the store first where there is none, or where it can't be used."""
    with contextlib.suppress(UnusableStore):
        return load_index(plan)  # without the lock: a finished store may be on a disk that can't be written
    try:
        os.makedirs(plan.folder, exist_ok=True)
        lock = FolderLock(plan.folder)
        _take_turn(lock, plan.folder)
    except OSError as error:
        raise _cannot_write(plan, error) from error
    try:
        return load_index(plan)  # another run may have built it by now
    except UnusableStore as error:
        if error.level:
            logger.log(error.level, "Audio store %s: %s; building it again", plan.folder, error)
        return _build(plan, skip_bad_audio, keep_cut, progress, alone=not lock.why_open)
    finally:
        lock.release()


def _take_turn(lock, folder):
    """Wait until no other run builds this store, and say how long that takes."""
    began = time.monotonic()
    for seconds in itertools.chain((0.0, *FIRST_WAITS), itertools.repeat(NEXT_WAITS)):
        try:
            return lock.acquire(timeout=seconds)
        except Busy as other:
            waited = time.monotonic() - began
            so_far = f" ({waited:.0f} s so far)" if seconds else ""
            logger.info("Another run is building the audio store %s (%s): waiting for it%s", folder, other, so_far)


def _build(plan, skip_bad_audio, keep_cut, progress, alone):
    """Write a store and return its index. `alone`: the lock keeps other builds out."""
    started = time.monotonic()
    try:
        if alone:  # else they may be another build's
            _sweep(plan.folder, ".*.tmp", ".writing-*")  # of a killed build; of one by an earlier version
        _check_room(plan)
        index = _write_files(plan, skip_bad_audio, keep_cut, progress)
    except OSError as error:
        raise _cannot_write(plan, error) from error
    _sweep(plan.folder, "samples-*", "index-*", keep=(plan.samples_path, plan.index_path))
    hours, seconds = index["lengths"].sum() / plan.sample_rate / 3600, time.monotonic() - started
    clips = len(plan.paths) - len(index["bad"])
    logger.info("Audio store %s: %d clips, %.2f hours, built in %.1f s", plan.folder, clips, hours, seconds)
    return index


def _write_files(plan, skip_bad_audio, keep_cut, progress):
    with atomic_file(plan.samples_path) as file:
        index = _write_samples(plan, file, progress)
        bad = plan.named(index["bad"], index["reasons"])
        bad |= {} if keep_cut else plan.named(index["cut"], index["cut_reasons"])
        refuse_bad(bad, len(plan.paths), skip_bad_audio, plan.data_folder)
        Path(plan.manifest_path).unlink(missing_ok=True)  # else it would vouch for one old and one new file
    packed = io.BytesIO()
    np.savez(packed, **index)
    try:
        write_atomically(plan.index_path, packed.getbuffer())
        manifest = {
            "format_version": FORMAT_VERSION,
            "index_version": INDEX_VERSION,
            "sample_rate": plan.sample_rate,
            "clips": len(plan.paths),
            "fingerprint": plan.fingerprint,
            "samples_bytes": int(index["lengths"].sum()) * SAMPLE_TYPE.itemsize,
            "data_folder": plan.data_folder,
            "samples": os.path.basename(plan.samples_path),
            "index": os.path.basename(plan.index_path),
            "index_crc32": zlib.crc32(packed.getbuffer()),
        }
        write_json(plan.manifest_path, manifest, indent=1)
    except OSError:  # without a manifest the samples are of no use: free their space on a full disk
        Path(plan.samples_path).unlink()
        raise
    return index


def _write_samples(plan, file, progress):
    """Decode every clip into the open file and return the index."""
    rows = len(plan.paths)
    lengths, crc32 = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.uint32)
    peaks = np.zeros(rows, dtype=np.float32)
    bad, cut, cancelled = {}, {}, []
    readers = Readers()
    decoder = functools.partial(_decode, sample_rate=plan.sample_rate, readers=readers)
    clips = map_files(decoder, plan.files, "audio store", progress)
    with contextlib.closing(readers), contextlib.closing(clips):  # the threads of `clips` end first
        for row, clip in enumerate(clips):
            if clip.bad:
                bad[row] = clip.bad
                continue
            file.write(clip.samples.astype(SAMPLE_TYPE, copy=False))
            lengths[row], peaks[row], crc32[row] = len(clip.samples), clip.peak, clip.crc32
            if clip.cut:
                cut[row] = clip.cut
            if clip.cancelled:
                cancelled.append(row)
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
        "cut": np.array(list(cut), dtype=np.int64),
        "cut_reasons": np.array(list(cut.values()), dtype=str),
        "cancelled": np.array(cancelled, dtype=np.int64),
    }


class _Clip(NamedTuple):
    """What the store keeps of a clip; `bad` says why it keeps nothing."""

    samples: np.ndarray | None = None  # int16 [n]
    peak: float = 0.0
    crc32: int = 0
    cut: str = ""
    cancelled: bool = False
    bad: str = ""


def _decode(path, sample_rate, readers):
    try:
        decoded = decode(path, sample_rate, readers)
    except BadAudio as error:
        return _Clip(bad=error.reason)
    samples, peak = quantise(decoded.samples)
    return _Clip(samples, peak, zlib.crc32(samples), decoded.cut, decoded.cancelled)


def _sweep(folder, *patterns, keep=()):
    for pattern in patterns:
        for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
            if path not in keep:
                os.unlink(path)


def _needed_bytes(plan):
    """Estimate the size of the samples from the headers of at most CLIPS_MEASURED clips."""
    lengths = []
    for file in plan.files[:: -(-len(plan.paths) // CLIPS_MEASURED)]:
        with contextlib.suppress(BadAudio):
            lengths.append(n_samples(file, plan.sample_rate))
    if not lengths:
        return 0
    mean = np.minimum(lengths, 10 * np.median(lengths)).mean()  # a damaged header may promise any length
    return int(mean * len(plan.paths)) * SAMPLE_TYPE.itemsize


def _check_room(plan):
    needed, free = _needed_bytes(plan), shutil.disk_usage(plan.folder).free
    if free < 0.9 * needed:  # the need is an estimate: refuse only what surely won't fit
        raise OSError(f"only {_megabytes(free)} are free")


def _cannot_write(plan, error):
    return InputError(
        f"The audio store can't be written below store_folder={plan.store_folder} ({error.strerror or error}): it "
        f"needs about {_megabytes(_needed_bytes(plan))}. Set store_folder to a folder with that room, or to null to "
        "decode on the fly"
    )


def _megabytes(count):
    return f"{max(count / 1e6, 0.1):,.1f} MB"
