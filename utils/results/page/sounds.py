"""The clips of the page as small Ogg Vorbis files: libsndfile encodes these ten times as fast as Opus of their size."""

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import soundfile

from datasets.audio import load_mono, quantise, to_float
from utils.io.errors import InputError

RATE = 16000  # Hz
SECONDS = 4  # of a clip, from its beginning
SMALLEST = 1.0  # compression level: about 30 kbit/s at this rate


def encode_clips(data_folder: str, paths: Sequence[str], budget: int) -> list[str | None]:
    """Encode clips as Ogg Vorbis in base64, as many as fit in `budget` characters; None for the others.

    A clip that is gone or can't be read is None too.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        encoded = list(pool.map(lambda path: _encode(os.path.join(data_folder, path)), paths))
    for place, text in enumerate(encoded):
        budget -= len(text or "")
        if budget < 0:
            encoded[place] = None
    return encoded


def _encode(path):
    try:
        samples = to_float(quantise(load_mono(path, RATE)[: SECONDS * RATE])[0])
    except (InputError, OSError):
        return None
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="OGG", subtype="VORBIS", compression_level=SMALLEST)
    return base64.b64encode(file.getvalue()).decode()
