"""Check what the header of an audio file claims against the bytes that are there.

libsndfile reads a file whose data chunk is cut off as a shorter file, and takes the sample rate and, for compressed
files, the number of samples as they are written. Frames are samples per channel.
"""

import mmap
import os
import struct
from typing import NamedTuple

import soundfile as sf

RATES = 1_000, 1_000_000  # Hz; outside, a header is damaged, and resampling would take any amount of memory
# A header may claim at most so many frames per byte of its file. Digital silence has the most, as measured: 460 in
# Vorbis, 320 in FLAC, 210 in Opus, 11 in MP3.
MOST_FRAMES_PER_BYTE = 2_000
UNKNOWN = 2**63 - 1  # frames of a FLAC file that was written into a pipe, as libsndfile gives them
STREAM = 0x7FFF0000  # what programs write as a chunk's size where they can't go back to correct it: this or more, or 0
CUT = "cut off"  # how what is said of such a file begins
MOST_CHUNKS = 1_000  # that are looked through for the samples
OGG_TAIL = 2 * 65_307  # bytes at a file's end that hold its last page whole; 65,307 is the longest that a page can be

# A file's first bytes -> byte order and type of a chunk's size, where the first chunk begins, length of a chunk's name,
# name of the chunk with the samples, bytes in it before them.
CHUNKS = {
    b"RIFF": ("<I", 12, 4, b"data", 0),
    b"RF64": ("<I", 12, 4, b"data", 0),
    b"RIFX": (">I", 12, 4, b"data", 0),
    b"FORM": (">I", 12, 4, b"SSND", 8),  # AIFF
    b"riff": ("<Q", 40, 16, b"data", 0),  # Sony's Wave64: sizes include the chunk's own header
}


def refuse_claim(path: str, audio: sf.SoundFile) -> str:
    """Return why a file's rate or length can't be true, or ""; checked before any memory is taken for its samples."""
    if not RATES[0] <= audio.samplerate <= RATES[1]:
        return f"its header gives a sample rate of {audio.samplerate} Hz; from {RATES[0]} to {RATES[1]} Hz can be read"
    if audio.frames == UNKNOWN:
        return "its header doesn't say how long it is, as after writing into a pipe: convert it once more, into a file"
    size = os.path.getsize(path)
    if audio.frames > MOST_FRAMES_PER_BYTE * size:
        return f"its header claims {audio.frames} samples, more than its {size} bytes can hold"
    return ""


def cut_off(path: str, audio: sf.SoundFile, decoded: int | None = None) -> str:
    """Return how a file is cut off, or "" if it is complete as far as its header tells.

    `decoded` is how many frames decoding has given; None where the file wasn't decoded.
    """
    if audio.format == "OGG" and not _ogg_ends(path):
        return f"{CUT}: the end of its Ogg stream is missing"
    promised, there = audio.frames, audio.frames if decoded is None else decoded
    found = _find_samples(path)
    if found is not None and 0 < found.there < found.promised < STREAM:
        promised = max(promised, audio.frames * found.promised // found.there)
    # Some headers count themselves among the samples. MP3's length may be an estimate, off by a few blocks of 1,152.
    slack = audio.samplerate // (10 if audio.format == "MP3" else 100)
    return f"{CUT}: {there} of the {promised} samples that its header promises" if promised - there > slack else ""


def mended_stream(path: str) -> mmap.mmap | None:
    """Map a WAV file that was written into a pipe into memory, with the size of its samples in place of 0.

    None for any other file. libsndfile takes other placeholders for the size, such as 2**32 - 1, as they are meant.
    """
    found = _find_samples(path)
    if found is None or found.promised or not found.there:
        return None
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # what is written to it stays in memory
    order = "<I" if content[:4] == b"RIFF" else ">I"
    (riff_size,) = struct.unpack_from(order, content, 4)
    if content[:4] not in (b"RIFF", b"RIFX") or riff_size not in (0, 2**32 - 1, found.size_at - 4):
        return None  # the size of the whole is right, so the samples are truly none
    struct.pack_into(order, content, found.size_at, min(found.there, 2**32 - 1))
    return content


class _Samples(NamedTuple):
    """The chunk with a file's samples."""

    size_at: int  # where in the file its size stands
    promised: int  # bytes of samples, as the header has it
    there: int  # bytes from the first sample to the file's end


def _find_samples(path):
    """Return the `_Samples` of a file, or None where it is of a format that isn't known here."""
    with open(path, "rb") as file:
        length, first = file.seek(0, os.SEEK_END), _read(file, 0, 4)
        if first in (b".snd", b"dns."):  # AU, big- and little-endian
            begin, size = struct.unpack((">" if first == b".snd" else "<") + "II", _read(file, 4, 8).ljust(8, b"\0"))
            return _Samples(8, size, max(length - begin, 0))
        if first not in CHUNKS:
            return None
        order, place, n_name, wanted, before = CHUNKS[first]
        n_head, long_size = n_name + struct.calcsize(order), None
        for _ in range(MOST_CHUNKS):
            if place + n_head > length:
                return None
            head = _read(file, place, n_head)
            (size,) = struct.unpack(order, head[n_name:])
            size -= n_head if first == b"riff" else 0
            if head.startswith(b"ds64"):
                long_size = struct.unpack("<Q", _read(file, place + n_head + 8, 8).ljust(8, b"\0"))[0]
            if head.startswith(wanted):
                promised = size if long_size is None else long_size
                return _Samples(place + n_name, promised - before, length - place - n_head - before)
            place += n_head + size + -size % (8 if first == b"riff" else 2)
    return None


def _read(file, place, size):
    file.seek(place)
    return file.read(size)


def _ogg_ends(path):
    """Return whether the last page is there as a whole and is marked as the end of its stream."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - OGG_TAIL))
        tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0:
        return True  # something else follows the stream
    head = tail[page : page + 27]
    lacing = tail[page + 27 : page + 27 + head[26]] if len(head) == 27 else b""
    whole = len(head) == 27 and len(lacing) == head[26] and page + 27 + len(lacing) + sum(lacing) <= len(tail)
    return whole and bool(head[5] & 4)
