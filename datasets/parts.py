"""Name a part of a recording by a path: ``field/dawn.wav#t=10,20`` is seconds 10 to 20 of ``field/dawn.wav``.

The ending is that of W3C's Media Fragments URI 1.0, section 4.2.1. Without the second number the part goes to the end.
So a part is a clip like any other: it has a row in a table of clips, an index in the audio store, a cached embedding.
"""

import math
import os
import re
from typing import NamedTuple

PART = re.compile(r"(.+)#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)?", re.DOTALL)
LEAST_REST = 0.1  # of a segment: a shorter rest of a recording stays with the segment before


class Part(NamedTuple):
    """A part of a recording, or all of it."""

    file: str
    start: float = 0.0  # seconds
    stop: float | None = None  # seconds; None: to the end

    def frames(self, n_frames: int, rate: int) -> tuple[int, int]:
        """Return (first, last + 1) of the part, in samples per channel of a file that has `n_frames` at `rate` Hz."""
        stop = n_frames if self.stop is None else min(round(self.stop * rate), n_frames)
        return min(round(self.start * rate), n_frames), stop


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
