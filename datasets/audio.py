"""Decode an audio file to mono samples at one rate, convert them to int16 and back, and work on many files at once.

Shapes: n = samples of one clip at `sample_rate`.
"""

import collections
import concurrent.futures
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

from utils.io.errors import InputError

PEAK_LEVEL = 0.9  # every clip reaches the encoder with this peak
INT16_PEAK = 32767  # every clip is stored with this peak
FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")  # the encodings that can hold an infinity or a NaN
LOOK_AHEAD = 4  # files per thread that are being worked on or waiting: bounds the memory


class BadAudio(InputError):
    """A clip that can't be used. `reason` is the short reason; the text names the path too."""

    def __init__(self, path, reason=""):  # reason is optional: torch rebuilds a worker's error from its text alone
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self):
        return f"{self.path}: {self.reason}" if self.reason else self.path


def load_mono(path: str, sample_rate: int) -> np.ndarray:
    """Decode a file of any format that soundfile reads, average its channels and resample it to `sample_rate` Hz.

    Returns float32 [n], not scaled.

    Raises
    ------
    BadAudio
        The file is missing, unreadable, empty, or holds an infinity or a NaN.
    """
    with open_audio(path) as audio:
        promised, rate = audio.frames, audio.samplerate
        try:
            wav = audio.read(dtype="float32", always_2d=True)  # [frames, channels]
        except MemoryError as err:  # a damaged header may promise any length
            raise BadAudio(path, f"too large for the memory: its header promises {promised} frames") from err
        except (sf.SoundFileError, OSError, ValueError) as err:
            raise BadAudio(path, f"unreadable, damaged or cut short ({_short(err)})") from err
    if len(wav) == 0:
        raise BadAudio(path, f"no samples, though its header promises {promised} frames" if promised else "no samples")
    wav = _mean_of_channels(wav)  # [frames]
    if np.isfinite(wav).all() and rate != sample_rate:
        wav = soxr.resample(wav, rate, sample_rate, quality="HQ")
    if not np.isfinite(wav).all():  # also values beyond the range of float32 or of the resampler
        raise BadAudio(path, "infinite or NaN samples")
    if len(wav) == 0:
        raise BadAudio(path, f"too short: less than one sample at {sample_rate} Hz")
    return np.ascontiguousarray(wav, dtype=np.float32)


def mono_length(path: str, sample_rate: int) -> int:
    """Return the length of `load_mono(path, sample_rate)`, in samples, from the header where it can be trusted.

    A header is trusted if the last frame that it promises can be read; otherwise the file was cut short and is decoded.
    Encodings that can hold an infinity or a NaN are decoded too, so that these are found.

    Raises
    ------
    BadAudio
        As `load_mono`, except for damage in the middle of a file, which only decoding finds.
    """
    with open_audio(path) as audio:
        frames, rate = audio.frames, audio.samplerate
        trusted = audio.subtype not in FLOAT_SUBTYPES and frames > 0 and _last_frame_reads(audio)
    length = resampled_length(frames, rate, sample_rate) if trusted else 0
    return length or len(load_mono(path, sample_rate))


def resampled_length(frames: int, rate: int, sample_rate: int) -> int:
    """Return how many samples soxr makes of `frames` samples: `frames * sample_rate / rate`, halves rounded up."""
    return (2 * frames * sample_rate + rate) // (2 * rate)


def open_audio(path: str) -> sf.SoundFile:
    """Open an audio file; raise BadAudio with a short reason where that fails."""
    if os.path.exists(path) and not os.path.isfile(path):  # checked first, because opening a pipe would block
        raise BadAudio(path, "not a file")
    try:
        return sf.SoundFile(path)
    except (sf.SoundFileError, OSError, TypeError, ValueError) as err:  # TypeError: a headerless .raw file
        if not os.path.exists(path):
            reason = "no such file"
        elif os.path.getsize(path) == 0:
            reason = "empty file"
        else:
            reason = f"unreadable ({_short(err)})"
        raise BadAudio(path, reason) from err


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


def _last_frame_reads(audio):
    try:
        audio.seek(audio.frames - 1)
        return len(audio.read(1, dtype="float32")) == 1
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
