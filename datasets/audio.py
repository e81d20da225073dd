"""Decode an audio file to mono samples at one rate, convert them to int16 and back, and work on many files at once.

Shapes: n = samples of one clip at `sample_rate`.
"""

import collections
import concurrent.futures
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

from datasets import headers
from datasets.parts import Readers, parse_part
from utils.io.errors import InputError

# Extensions of the files that soundfile reads, without those that lack a header.
READABLE = {f".{name.lower()}" for name in sf.available_formats()} - {".raw"} | {".aif", ".oga", ".opus"}
PEAK_LEVEL = 0.9  # every clip reaches the encoder with this peak
INT16_PEAK = 32767  # every clip is stored with this peak
FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")  # the encodings that can hold an infinity or a NaN
LOOK_AHEAD = 4  # files per thread that are being worked on or waiting: bounds the memory

# The least amplitude that an encoding tells from silence, where the largest is 1. A peak below it is no sound.
RESOLUTION = {
    **dict.fromkeys(("PCM_S8", "PCM_U8", "DPCM_8"), 2.0**-7),
    **{"GSM610": 2.0**-10, "ALAW": 2.0**-11, "ULAW": 2.0**-12},  # GSM decodes silence to 2**-11, A-law to 2**-12
    **dict.fromkeys(("PCM_24", "ALAC_24", "ALAC_20", "VORBIS", "OPUS", "MPEG_LAYER_II", "MPEG_LAYER_III"), 2.0**-23),
    **dict.fromkeys(("PCM_32", "ALAC_32", "FLOAT", "DOUBLE"), 2.0**-31),
}
RESOLUTION_16 = 2.0**-15  # of all others
CANCELLED = 1e-3  # of the channels' peak: an average that is fainter is what rounding leaves of channels that cancel
CANCELLED_LOG = {"ULAW": 2.0**-5, "ALAW": 2.0**-5}  # the same where the steps grow with the amplitude
PROBED = 4096  # frames of a clip that tell whether its channels may cancel
ROUNDING = 0.1  # seconds by which a part may end after its file, as times written by hand do


class BadAudio(InputError):
    """A clip that can't be used. `reason` is the short reason; the text names the path too."""

    def __init__(self, path, reason=""):  # reason is optional: torch rebuilds a worker's error from its text alone
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self):
        return f"{self.path}: {self.reason}" if self.reason else self.path


class Decoded(NamedTuple):
    """A decoded clip."""

    samples: np.ndarray  # float32 [n], not scaled
    cut: str = ""  # how the file is cut off; "" if it is complete
    cancelled: bool = False  # its channels cancel when they are averaged: the samples are those of the louder one


def load_mono(path: str, sample_rate: int) -> np.ndarray:
    """Decode a file of any format that soundfile reads, average its channels and resample it to `sample_rate` Hz.

    Of a file that is cut off, this is what is there. Channels that cancel are not averaged, see `mix_down`. A path may
    name a part of a file, see `datasets.parts`: only the part is decoded, as if it were a file of its own.
    Returns float32 [n], not scaled.

    Raises
    ------
    BadAudio
        The file is missing, unreadable, empty, or holds an infinity or a NaN; or its header can't be true.
    """
    return decode(path, sample_rate).samples


def decode(path: str, sample_rate: int, readers: Readers | None = None) -> Decoded:
    """Do what `load_mono` does, and say what is wrong with a clip that can be used all the same.

    `readers` keep a file open from one part to the next.
    """
    with (readers or Readers()).opened(path, open_audio) as reader:
        audio = reader.audio
        first, last = _frames(path, audio)
        promised, rate, subtype = last - first, audio.samplerate, audio.subtype
        try:  # by their number, because "all" needs a seek, which GSM 6.10 and some ADPCM can't
            reader.go_to(first)
            wav = reader.read(promised)  # [frames, channels]
            cut = _cut_off(path, audio, first, first + len(wav))
        except MemoryError as err:
            raise BadAudio(path, f"too large for the memory: its header promises {promised} frames") from err
        except (sf.SoundFileError, OSError, ValueError) as err:
            raise BadAudio(path, f"unreadable, damaged or cut short ({_short(err)})") from err
    if len(wav) == 0:
        raise BadAudio(path, f"no samples, though its header promises {promised} frames" if promised else "no samples")
    wav, cancelled = mix_down(wav, subtype)  # [frames]
    if np.isfinite(wav).all() and rate != sample_rate:
        wav = soxr.resample(wav, rate, sample_rate, quality="HQ")
    if not np.isfinite(wav).all():  # also values beyond the range of float32 or of the resampler
        raise BadAudio(path, "infinite or NaN samples")
    if len(wav) == 0:
        raise BadAudio(path, f"too short: less than one sample at {sample_rate} Hz")
    return Decoded(np.ascontiguousarray(wav, dtype=np.float32), cut, cancelled)


class Measured(NamedTuple):
    """What is known of a clip before it is decoded."""

    length: int  # of its samples at the wanted rate; 0 for a bad clip
    cut: str = ""  # as in `Decoded`
    cancelled: bool = False
    bad: str = ""  # why it can't be used; "" if it can


def measure(path: str, sample_rate: int, readers: Readers | None = None) -> Measured:
    """Return what `decode(path, sample_rate)` would find, from the header where it can be trusted.

    A header is trusted if the last frame that it promises can be read; otherwise the file was cut short and is decoded.
    Encodings that can hold an infinity or a NaN are decoded too, so that these are found, and so is a clip whose first
    samples don't rule out that its channels cancel. Damage in the middle of a file is found by decoding alone.
    """
    try:
        readers = readers or Readers()
        with readers.opened(path, open_audio) as reader:
            audio = reader.audio
            first, last = _frames(path, audio)
            rate, cut = audio.samplerate, _cut_off(path, audio, first)
            trusted = audio.subtype not in FLOAT_SUBTYPES and last > first and _frame_reads(reader, last - 1)
            trusted = trusted and not _may_cancel(reader, first)
        length = resampled_length(last - first, rate, sample_rate) if trusted else 0
        if length:
            return Measured(length, cut)
        decoded = decode(path, sample_rate, readers)
        return Measured(len(decoded.samples), decoded.cut, decoded.cancelled)
    except BadAudio as error:
        return Measured(0, bad=error.reason)


def mix_down(wav: np.ndarray, subtype: str) -> tuple[np.ndarray, bool]:
    """Average the channels of float32 [frames, channels]; return float32 [frames] and whether the channels cancel.

    The average of channels that cancel is rounding noise, which would be scaled up to a loud clip. Of these the louder
    channel is returned. A clip whose peak is below the resolution of its encoding, a soundfile subtype, is zeros.
    """
    mono, step = _mean_of_channels(wav), RESOLUTION.get(subtype, RESOLUTION_16)
    peak, cancelled = _peak(mono), False
    if wav.shape[1] > 1:
        loudest = _peak(wav)
        least = max(CANCELLED_LOG.get(subtype, CANCELLED) * loudest, min(2 * step, loudest / 8))
        cancelled = bool(peak <= least and loudest >= step)
    if cancelled:
        mono = wav[:, np.abs(wav).max(axis=0).argmax()]
        peak = loudest
    return (np.zeros_like(mono), False) if peak < step else (mono, cancelled)


def resampled_length(frames: int, rate: int, sample_rate: int) -> int:
    """Return how many samples soxr makes of `frames` samples: `frames * sample_rate / rate`, halves rounded up."""
    return (2 * frames * sample_rate + rate) // (2 * rate)


def n_samples(path: str, sample_rate: int) -> int:
    """Return how many samples a file, or a part of one, has at `sample_rate` Hz, going by the header.

    Raises
    ------
    BadAudio
        As `open_audio`.
    """
    with open_audio(path) as audio:
        first, last = _frames(path, audio)
        return resampled_length(last - first, audio.samplerate, sample_rate)


def duration(path: str) -> float:
    """Return the seconds of a whole file, going by its header; 0 for one that can't be opened."""
    try:
        with open_audio(path) as audio:
            return audio.frames / audio.samplerate
    except BadAudio:
        return 0.0


def open_audio(path: str) -> sf.SoundFile:
    """Open the audio file of a path, which may name a part of it.

    Raises
    ------
    BadAudio
        With a short reason where that fails, or where the header can't be true.
    """
    part, path = path, parse_part(path).file
    if os.path.exists(path) and not os.path.isfile(path):  # checked first, because opening a pipe would block
        raise BadAudio(part, "not a file")
    try:
        audio = sf.SoundFile(path)
        stream = headers.mended_stream(path) if audio.frames == 0 else None
        if stream is not None:
            audio.close()
            audio = sf.SoundFile(stream)
    except (sf.SoundFileError, OSError, TypeError, ValueError) as err:  # TypeError: a headerless .raw file
        if not os.path.exists(path):
            reason = "no such file"
        elif os.path.getsize(path) == 0:
            reason = "empty file"
        else:
            reason = f"unreadable ({_short(err)})"
        raise BadAudio(part, reason) from err
    reason = headers.refuse_claim(path, audio)
    if reason:
        audio.close()
        raise BadAudio(part, reason)
    return audio


def _frames(path, audio):
    """Return (first, last + 1) of the frames that a path stands for; refuse a part that its file doesn't have."""
    part, there = parse_part(path), audio.frames / audio.samplerate
    if part.start > 0 and part.start >= there or (part.stop or 0) > there + ROUNDING:
        beyond = f"starts at {part.start:g}" if part.start >= there else f"ends at {part.stop:g}"
        raise BadAudio(path, f"no such part: it {beyond} s, and the file has {there:.3f} s")
    return part.frames(audio.frames, audio.samplerate)


def _cut_off(path, audio, first, reached=None):
    """Do what `headers.cut_off` does; of a file in parts, the last part is cut off, not those before it.

    `reached` is the frame at which decoding has ended.
    """
    part = parse_part(path)
    if part.stop is None:
        return headers.cut_off(part.file, audio, reached)
    last = part.frames(audio.frames, audio.samplerate)[1]
    short = reached is not None and reached < last
    return f"{headers.CUT}: {reached - first} of the part's {last - first} samples" if short else ""


def quantise(wav: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale a clip, float32 [n], to the full int16 range.

    Returns
    -------
    samples : np.ndarray
        int16 [n], of peak 32767; zeros for a silent clip.
    peak : float
        The largest absolute value of `wav`; 0 for a silent clip. `samples * peak / 32767` is `wav` within half a step.
    """
    peak = float(np.abs(wav).max(initial=0.0))
    if peak == 0.0:
        return np.zeros(len(wav), dtype=np.int16), 0.0
    # In float64, because the scale of a very faint clip exceeds the range of float32.
    return np.rint(wav * np.float64(INT16_PEAK / peak)).astype(np.int16), peak


def to_float(samples: np.ndarray, level: float = PEAK_LEVEL) -> np.ndarray:
    """Convert int16 samples of `quantise`, or a slice, to float32 [n]; the peak of the whole clip becomes `level`."""
    return np.multiply(samples, np.float32(level / INT16_PEAK), dtype=np.float32)


def _mean_of_channels(wav):
    """Return `wav.mean(axis=1)`, several times as fast: numpy is slow along an axis of length one or two."""
    if wav.shape[1] == 1:
        return wav[:, 0]
    total = wav[:, 0] + wav[:, 1]
    for channel in range(2, wav.shape[1]):
        total += wav[:, channel]
    return total / np.float32(wav.shape[1])


def _peak(wav):
    """Return the largest absolute value, or NaN if there is one."""
    return float(np.maximum(wav.max(initial=0.0), -wav.min(initial=0.0)))


def _may_cancel(reader, first):
    """Return whether `mix_down` may find that the channels of an open file cancel, going by the samples at `first`."""
    audio = reader.audio
    if audio.channels == 1:
        return False
    try:
        reader.go_to(first)
        start = _mean_of_channels(reader.read(PROBED))
    except (sf.SoundFileError, OSError, ValueError):  # decoding tells what is damaged
        return True
    share, step = CANCELLED_LOG.get(audio.subtype, CANCELLED), RESOLUTION.get(audio.subtype, RESOLUTION_16)
    return not _peak(start) > 2 * max(share, step)  # of channels whose peak is at most 2, as lossy ones' may be


def _frame_reads(reader, frame):
    if not reader.audio.seekable():
        return False
    try:
        reader.go_to(frame)
        return len(reader.read(1)) == 1
    except (sf.SoundFileError, OSError, ValueError):
        return False


def _short(err):
    if isinstance(err, sf.LibsndfileError):  # code 0: a call in another thread has cleared the reason
        text = err.error_string if err.code else ""
    else:
        text = str(err)
    return text.strip().rstrip(".") or "the decoder gives no reason"


def map_files(function: Callable, files: Sequence[str], what: str, progress: bool) -> Iterator:
    """Yield `function(file)` for each file in order, computed in threads, with a progress bar on a terminal.

    Threads, not processes: soundfile and soxr release Python's global lock while they work, nothing has to be pickled,
    and no process starts beside those of the data loaders.
    """
    shown = progress and sys.stderr is not None and sys.stderr.isatty()
    bar = tqdm(total=len(files), desc=what, unit="clip", disable=not shown, leave=False, dynamic_ncols=True)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = collections.deque()
    with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for file in files:
                waiting.append(pool.submit(function, file))
                if len(waiting) >= LOOK_AHEAD * threads:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
        finally:
            for future in waiting:
                future.cancel()
