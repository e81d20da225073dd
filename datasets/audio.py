"""From an audio file to mono samples at one rate, and to int16 and back.

Shapes: n = samples of one clip at `sample_rate`.
"""

import os

import numpy as np
import soundfile as sf
import soxr

from utils.io.errors import InputError

PEAK_LEVEL = 0.9  # every clip reaches the encoder with this peak
INT16_PEAK = 32767  # and is kept with this one
FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")  # the encodings that can hold an infinity or a NaN


class BadAudio(InputError):
    """A clip that can't be used. `reason` is the short reason, the text says the path too."""

    def __init__(self, path, reason=""):  # torch makes it anew, from one text, where a DataLoader's worker raised it
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self):
        return f"{self.path}: {self.reason}" if self.reason else self.path


def load_mono(path, sample_rate):
    """Decode a file of any format that soundfile reads, mix it to mono and resample it.

    Parameters
    ----------
    path : str
        The audio file.
    sample_rate : int
        The wanted rate, in Hz.

    Returns
    -------
    np.ndarray
        float32 [n], the mean of the channels, not scaled.

    Raises
    ------
    BadAudio
        (an InputError) where the file is missing, unreadable, empty, or holds an infinity or a NaN.
    """
    with open_audio(path) as audio:
        promised, rate = audio.frames, audio.samplerate
        try:
            wav = audio.read(dtype="float32", always_2d=True)  # [frames, channels]
        except MemoryError as err:  # the header of a damaged file may promise anything
            raise BadAudio(path, f"too large for the memory: its header promises {promised} frames") from err
        except (sf.SoundFileError, OSError, ValueError) as err:
            raise BadAudio(path, f"unreadable, damaged or cut short ({_short(err)})") from err
    if len(wav) == 0:
        raise BadAudio(path, f"no samples, though its header promises {promised} frames" if promised else "no samples")
    wav = _mean_of_channels(wav)  # [frames]
    if np.isfinite(wav).all() and rate != sample_rate:
        wav = soxr.resample(wav, rate, sample_rate, quality="HQ")
    if not np.isfinite(wav).all():  # also what float32 or the resampler can't hold
        raise BadAudio(path, "infinite or NaN samples")
    if len(wav) == 0:
        raise BadAudio(path, f"too short: less than one sample at {sample_rate} Hz")
    return np.ascontiguousarray(wav, dtype=np.float32)


def mono_length(path, sample_rate):
    """The length of `load_mono(path, sample_rate)`, without decoding the file where its header can be trusted.

    It can where its last frame can be read; a file cut short, whose header promises more than there is, is decoded.
    So are the encodings that can hold an infinity or a NaN, so that these are found here as well.

    Returns
    -------
    int
        Samples at `sample_rate`.

    Raises
    ------
    BadAudio
        As `load_mono`; but damage in the middle of a file is only found by decoding it.
    """
    with open_audio(path) as audio:
        frames, rate = audio.frames, audio.samplerate
        trusted = audio.subtype not in FLOAT_SUBTYPES and frames > 0 and _last_frame_reads(audio)
    length = resampled_length(frames, rate, sample_rate) if trusted else 0
    return length or len(load_mono(path, sample_rate))


def resampled_length(frames, rate, sample_rate):
    """How many samples soxr makes of `frames` samples: `frames * sample_rate / rate`, halves rounded up."""
    return (2 * frames * sample_rate + rate) // (2 * rate)


def open_audio(path):
    """`soundfile.SoundFile(path)`, with BadAudio and a short reason where it can't be opened."""
    if os.path.exists(path) and not os.path.isfile(path):  # before opening: a pipe would be waited for
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


def quantise(wav):
    """Scale a clip to the full int16 range.

    Parameters
    ----------
    wav : np.ndarray
        float32 [n].

    Returns
    -------
    samples : np.ndarray
        int16 [n], of peak 32767; zeros for a silent clip.
    peak : float
        The largest absolute value of `wav`: `samples * peak / 32767` is `wav` within half a step. 0 if silent.
    """
    peak = float(np.abs(wav).max(initial=0.0))
    if peak == 0.0:
        return np.zeros(len(wav), dtype=np.int16), 0.0
    # In float64, since the scale of a very faint clip is more than float32 can hold.
    return np.rint(wav * np.float64(INT16_PEAK / peak)).astype(np.int16), peak


def to_float(samples, level=PEAK_LEVEL):
    """Quantised samples, or a slice of them, as floats: the peak of the whole clip comes out as `level`.

    Parameters
    ----------
    samples : np.ndarray
        int16 [n], from `quantise`.
    level : float
        The peak of the whole clip. A silent clip stays silent.

    Returns
    -------
    np.ndarray
        float32 [n].
    """
    return np.multiply(samples, np.float32(level / INT16_PEAK), dtype=np.float32)


def _mean_of_channels(wav):
    """`wav.mean(axis=1)`, several times as fast: numpy is slow along an axis of one or two."""
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
    if isinstance(err, sf.LibsndfileError):  # code 0: another thread's call has cleared the reason
        text = err.error_string if err.code else ""
    else:
        text = str(err)
    return text.strip().rstrip(".") or "the decoder gives no reason"
