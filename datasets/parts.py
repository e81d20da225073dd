"""Name a part of a recording by a path: ``field/dawn.wav#t=10,20`` is seconds 10 to 20 of ``field/dawn.wav``.

The ending is that of W3C's Media Fragments URI 1.0, section 4.2.1. Without the second number the part goes to the end.
So a part is a clip like any other: it has a row in a table of clips, an index in the audio store, a cached embedding.
"""

import contextlib
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import soundfile as sf

PART = re.compile(r"(.+)#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)?", re.DOTALL)
LEAST_REST = 0.1  # of a segment: a shorter rest of a recording stays with the segment before
# An MP3's frame uses bytes of frames before it, 511 at most, which a seek may not have read. So decoding begins so many
# samples earlier: the samples then differ by 1e-7 from those of the whole file, else by up to 0.2.
MP3_BEFORE = 11_520
DROPPED = 65_536  # frames that are read at a time where a file can't be sought in


class Part(NamedTuple):
    """A part of a recording, or all of it."""

    file: str
    start: float = 0.0  # seconds
    stop: float | None = None  # seconds; None: to the end

    def first(self, rate: int) -> int:
        """Return the first frame, a sample per channel, of the part of a file of `rate` Hz."""
        return round(self.start * rate)

    def frames(self, n_frames: int, rate: int) -> tuple[int, int]:
        """Return (first, last + 1) of the part's frames, of a file that has `n_frames`."""
        stop = n_frames if self.stop is None else min(round(self.stop * rate), n_frames)
        return min(self.first(rate), n_frames), stop


def parse_part(path: str | os.PathLike) -> Part:
    """Split a path into file and times."""
    path = os.fspath(path)
    match = PART.fullmatch(path)
    if match is None:
        return Part(path)
    file, start, stop = match.groups()
    return Part(file, float(start), None if stop is None else float(stop))


def part_path(part: Part) -> str:
    """Write a part as a path; all of a recording is its file's path."""
    if part.start == 0 and part.stop is None:
        return part.file
    return f"{part.file}#t={_seconds(part.start)},{'' if part.stop is None else _seconds(part.stop)}"


def _seconds(value):
    return f"{value:.6f}".rstrip("0").rstrip(".")


def cut(part: Part, duration: float, segment_seconds: float) -> list[Part]:
    """Cut a part of a recording of `duration` seconds into segments of `segment_seconds`, end to end.

    The last is what remains. A rest under a tenth of a segment is no segment, but stays with the one before.
    """
    stop = duration if part.stop is None else part.stop
    count = max(1, math.ceil((stop - part.start) / segment_seconds - LEAST_REST))
    bounds = [part.start + k * segment_seconds for k in range(count)]
    return [Part(part.file, *pair) for pair in zip(bounds, [*bounds[1:], part.stop], strict=True)]


class Reader:
    """An open audio file and the next frame that it reads, which a file that can't be sought in doesn't tell."""

    def __init__(self, audio: sf.SoundFile):
        self.audio, self.place = audio, 0

    def go_to(self, first: int):
        """Make `first` the next frame; the file's end if it has no such frame."""
        if self.audio.seekable() and (first or self.place):
            self.place = max(0, first - MP3_BEFORE) if self.audio.format == "MP3" else first
            self.audio.seek(self.place)
        while self.place < first:  # GSM 6.10 and some ADPCM can only be read through
            got = len(self.audio.read(min(DROPPED, first - self.place), dtype="float32"))
            if not got:
                return
            self.place += got

    def read(self, count: int):
        """Read so many frames, float32 [frames, channels]."""
        wav = self.audio.read(count, dtype="float32", always_2d=True)
        self.place += len(wav)
        return wav


class Readers:
    """Files that stay open while their parts are decoded in order, in several threads.

    So a thread opens a recording once, and reads it through once where it can't be sought in. An MP3 is opened for each
    part, because the last bit of its samples depends on what its decoder has read before.
    """

    def __init__(self):
        self.lock, self.file, self.idle = threading.Lock(), None, []

    @contextlib.contextmanager
    def opened(self, path: str, open_audio: Callable) -> Iterator[Reader]:
        """Lend an open reader of a part's file; a whole file is opened for this once."""
        part = parse_part(path)
        reader = self._take(part) if part.file != path else None
        if reader is None:
            reader = Reader(open_audio(path))
        try:
            yield reader
        except BaseException:
            reader.audio.close()
            raise
        with self.lock:
            if part.file == path or part.file != self.file or reader.audio.format == "MP3":
                reader.audio.close()
            else:
                self.idle.append(reader)

    def _take(self, part):
        """Return an idle reader of the part's file that can go to its start, if there is one."""
        with self.lock:
            if part.file != self.file:
                self._close()
                self.file = part.file
            usable = [one for one in self.idle if one.audio.seekable() or one.place <= part.first(one.audio.samplerate)]
            if not usable:
                return None
            reader = max(usable, key=lambda one: one.place)
            self.idle.remove(reader)
            return reader

    def _close(self):
        for reader in self.idle:
            reader.audio.close()
        self.idle = []

    def close(self):
        """Close all files."""
        with self.lock:
            self.file = None
            self._close()
