"""The audio store: decode, mix down, resample and check every clip of a data set once, for all runs.

The samples of all clips lie end to end in one int16 file, which is mapped into memory. An index says where each clip
begins, how long it is and what its peak was. Later runs, encoders and evaluations open both in milliseconds and read
crops as slices; the operating system shares the pages among all workers and runs. A clip is stored scaled to the full
int16 range, so that a faint clip loses no more precision than a loud one, and is read scaled to a peak of 0.9.

Opening checks the size of the samples, the index and store.json, and builds the store again where they are damaged.
Checking all samples at every start would take minutes for a large data set. So the CRC-32 of a clip is checked when a
run first reads it, once a run, since the workers share which clips are checked. That takes 0.05 ms for 4 s of sound,
where reading a crop of 2 s takes 0.02 ms. A damaged clip is decoded from its source file, and store.json is deleted, so
that the next start builds the store again.

Why not SpeechBrain's CachedDynamicItem, or its HDF5 form? Those fill a cache item by item during the first epoch, in
the workers. That epoch is as slow as without a cache, a damaged clip turns up in the middle of it, every worker holds
its own copy or waits for the others, and an item is a whole clip, of which a crop needs a fraction.

Shapes: c = clips, n = samples of one clip at `sample_rate`.
"""

import collections
import contextlib
import functools
import logging
import mmap
import os
import re
import zlib
from collections.abc import Sequence

import numpy as np

from datasets.audio import BadAudio, load_mono, map_files, measure, quantise, to_float
from datasets.bad_audio import refuse_bad
from datasets.parts import Readers
from datasets.store_build import load_or_build
from datasets.store_files import SAMPLE_TYPE, StorePlan, stat_files
from utils.io.errors import InputError
from utils.io.places import cache_path, home_path

logger = logging.getLogger(__name__)

CUT_AUDIO = ("refuse", "keep")
LIVE_CLIPS_KEPT = 4  # decoded clips that LiveAudio remembers, so that the two views of one clip decode it once
UNCHECKED, GOOD, DAMAGED = range(3)  # what a run knows of a clip's samples


def open_store(
    data_folder: str | os.PathLike,
    wav_paths: Sequence[str | os.PathLike],
    sample_rate: int = 16000,
    store_folder: str | None = "~/.cache/continual-sound",
    name: str = "audio",
    skip_bad_audio: bool = False,
    cut_audio: str = "refuse",
    progress: bool = True,
):
    """Open the audio store of these clips; build it first where there is none, or where it is stale or damaged.

    Parameters
    ----------
    data_folder
        Folder of the data set. It may be read-only.
    wav_paths
        Audio files or parts of them (see `datasets.parts`), relative to `data_folder` or absolute. Their order is the
        clip index of what is returned. The same files in another order share one store.
    sample_rate
        Of the samples, in Hz.
    store_folder
        Where the stores are; None decodes each clip when it is read, with the same samples.
    name
        How the name of the store's folder begins: the data set.
    skip_bad_audio
        Go on without missing, unreadable, empty and non-finite clips, and log how many there are.
    cut_audio
        What to do with a file that holds fewer samples than its header says, or an Ogg stream without its end: "refuse"
        takes it for a bad clip, "keep" uses what is there, and logs how many there are.
    progress
        Show a progress bar if stderr is a terminal.

    Returns
    -------
    AudioStore or LiveAudio
        Both have the interface of `Clips`.

    Raises
    ------
    InputError
        `cut_audio` is unknown; `data_folder` is missing; clips are bad (up to 20 are named), or none is good;
        `store_folder` can't be written, has no room, or holds a store of another rate or format.
    """
    if cut_audio not in CUT_AUDIO:
        raise InputError(f"cut_audio is {cut_audio!r}: choose one of {', '.join(CUT_AUDIO)}.")
    keep_cut = cut_audio == "keep"
    data_folder = os.path.realpath(home_path(data_folder, "data_folder"))
    if not os.path.isdir(data_folder):
        raise InputError(f"data_folder={data_folder} is not a folder: set it to where the dataset is")
    paths = [os.fspath(path) for path in wav_paths]
    if not paths:
        raise InputError(f"No clips to read from data_folder={data_folder}: the list of audio files is empty")
    if store_folder is None:
        clips = LiveAudio(data_folder, paths, sample_rate, keep_cut, progress)
    else:
        plan = StorePlan.make(data_folder, paths, sample_rate, cache_path(store_folder), name)
        clips = AudioStore(plan, paths, load_or_build(plan, skip_bad_audio, keep_cut, progress), keep_cut)
    refuse_bad(clips.bad, len(set(paths)), skip_bad_audio, data_folder)
    _warn(clips, len(set(paths)))
    return clips


def path_of(clip_id: str) -> str:
    """Return the path of the clip in an id of `Clips.ids`."""
    path, at, rest = clip_id.rpartition("@")
    if at and re.fullmatch(r"\d+:\d+:-?\d+", rest):  # as `LiveAudio.ids`
        return path
    return clip_id.rpartition(":")[0]


def _warn(clips, total):
    """Log what is not as it should be with clips that are used or left out, in one line a kind."""
    if clips.bad:
        logger.warning("%d of %d clips cannot be used and are skipped", len(clips.bad), total)
    for path, reason in list(clips.cut.items())[:1]:
        logger.warning("%d of %d clips are not whole and are used as they are, such as %s (%s)",
                       len(clips.cut), total, path, reason)  # fmt: skip
    if clips.cancelled:
        logger.warning("%d of %d clips have channels that cancel when they are averaged, such as %s: their louder "
                       "channel is used", len(clips.cancelled), total, clips.cancelled[0])  # fmt: skip


class Clips:
    """What AudioStore and LiveAudio have in common.

    Attributes
    ----------
    data_folder : str
        Real path of the data set's folder.
    paths : list of str
        As given to `open_store`.
    lengths : np.ndarray
        int64 [c], samples at `sample_rate`; 0 for a bad clip.
    bad : dict
        Path -> reason, of the clips that can't be used.
    cut : dict
        Path -> what is missing, of the clips that are used though their files are cut off.
    cancelled : list of str
        Paths of the clips whose channels cancel when they are averaged, so that the louder one is used.
    sample_rate : int
        In Hz.
    ids : np.ndarray
        str [c], the key of cached embeddings; changes with the clip's content.
    contents : list of str
        What each clip holds, wherever the data folder is and whenever its files were written; see the classes.
    kind : str
        "stored" or "live": how `contents` are known. Only contents of one kind can be compared.
    peaks : np.ndarray
        float32 [c], the largest amplitude of the mono clip before it was scaled; 0 for a silent or a bad clip.
    """

    def __init__(self, data_folder, paths, lengths, sample_rate, bad, cut, cancelled, keep_cut):
        self.data_folder, self.paths, self.sample_rate = data_folder, paths, sample_rate
        bad, cut = (bad, cut) if keep_cut else (bad | cut, {})
        self.bad, self.cut = ({path: some[path] for path in paths if path in some} for some in (bad, cut))
        self.lengths = np.where([path in bad for path in paths], 0, lengths)
        cancelled = set(cancelled) - bad.keys()
        self.cancelled = [path for path in paths if path in cancelled]

    def __len__(self):
        return len(self.paths)

    def name(self, clip: int) -> str:
        """Return a clip's path below the data folder."""
        path = self.paths[clip]
        return os.path.relpath(path, self.data_folder) if os.path.isabs(path) else path

    def read(self, clip: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read samples `start` to `stop` (None: to the end), scaled so that the peak of the whole clip is 0.9.

        Returns float32 [stop - start], a copy. A silent clip is zeros.

        Raises
        ------
        IndexError
            The slice reaches beyond the clip.
        InputError
            The clip is bad.
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
        """Return int16 [stop - start]."""
        raise NotImplementedError


class AudioStore(Clips):
    """The clips of a finished store. Pickled for DataLoader workers without the samples, which each worker maps."""

    kind = "stored"

    def __init__(self, plan, paths, index, keep_cut):
        row_of = {path: row for row, path in enumerate(plan.paths)}
        rows = np.array([row_of[path] for path in paths], dtype=np.int64)  # clip -> row of the index
        bad, cut = plan.named(index["bad"], index["reasons"]), plan.named(index["cut"], index["cut_reasons"])
        cancelled = [plan.paths[row] for row in index["cancelled"]]
        lengths, self.crc32, self.offsets = (index[key][rows] for key in ("lengths", "crc32", "offsets"))
        super().__init__(plan.data_folder, paths, lengths, plan.sample_rate, bad, cut, cancelled, keep_cut)
        self.peaks = np.where(self.lengths > 0, index["peaks"][rows], np.float32(0))
        self.folder, self.samples_path, self.manifest_path = plan.folder, plan.samples_path, plan.manifest_path
        self._decoded = {}  # clip -> int16 [n], of clips that are damaged in the store
        self._open()  # at once, so that the samples stay readable even if a later build unlinks the file

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
        except FileNotFoundError as error:
            raise InputError(
                f"The audio store {self.folder} was built again, from other files, by another run: start this one again"
            ) from error
        self._samples = np.asarray(mapped)  # a plain array slices faster than np.memmap
        self._checked = mmap.mmap(-1, len(self))  # [c] UNCHECKED, GOOD or DAMAGED; shared with forked workers

    def _slice(self, clip, start, stop):
        if self._samples is None:
            self._open()
        if self._checked[clip] != GOOD and not self._check(clip):
            return self._decode(clip)[start:stop]
        offset = int(self.offsets[clip])
        return self._samples[offset + start : offset + stop]

    def _check(self, clip):
        """Return whether a clip's samples are those that were written; note and report a damaged clip."""
        offset, known = int(self.offsets[clip]), self._checked[clip]
        if zlib.crc32(self._samples[offset : offset + int(self.lengths[clip])]) == self.crc32[clip]:
            self._checked[clip] = GOOD
            return True
        if known == UNCHECKED:
            logger.warning("Audio store %s: %s is damaged, and is decoded from its file; the next start builds the "
                           "store again", self.folder, self.paths[clip])  # fmt: skip
            with contextlib.suppress(OSError):  # on a read-only disk the manifest stays, and each run finds the damage
                os.unlink(self.manifest_path)
        self._checked[clip] = DAMAGED
        return False

    def _decode(self, clip):
        """Decode a clip that is damaged in the store: int16 [n]."""
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

    Opening reads the length of every clip from its header where that can be trusted (see `datasets.audio.measure`).
    So damage in the middle of a file, which a store's build finds, is an error here when the clip is read. `peaks`
    decodes every clip when first asked for.
    """

    kind = "live"

    def __init__(self, data_folder, paths, sample_rate, keep_cut, progress=True):
        self.files = [os.path.join(data_folder, path) for path in paths]
        self._sizes, self._mtimes = stat_files(self.files)
        with contextlib.closing(Readers()) as readers:
            measured = functools.partial(measure, sample_rate=sample_rate, readers=readers)
            found = dict(zip(paths, map_files(measured, self.files, "checking audio", progress), strict=True))
        lengths = np.array([found[path].length for path in paths], dtype=np.int64)
        bad = {path: clip.bad for path, clip in found.items() if clip.bad}
        cut = {path: clip.cut for path, clip in found.items() if clip.cut}
        cancelled = [path for path, clip in found.items() if clip.cancelled]
        super().__init__(data_folder, paths, lengths, sample_rate, bad, cut, cancelled, keep_cut)
        self._recent = collections.OrderedDict()  # clip -> (int16 [n], peak), the latest last

    @functools.cached_property
    def ids(self):
        """str [c]: path, rate, and the source file's size and time."""
        stats = zip(self.paths, self._sizes.tolist(), self._mtimes.tolist(), strict=True)
        return np.array([f"{path}@{self.sample_rate}:{size}:{mtime}" for path, size, mtime in stats])

    @property
    def contents(self):
        """list of str [c]: path and size of the source file, and length of the samples, since none is decoded yet."""
        sizes = zip(self._sizes.tolist(), self.lengths.tolist(), strict=True)
        return [f"{self.name(clip)}:{size}:{n}" for clip, (size, n) in enumerate(sizes)]

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
