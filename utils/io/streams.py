"""Standard streams that can't end a run: a closed one is replaced, and what a broken one can't take is dropped."""

import contextlib
import io
import os
import sys


class _Stream(io.FileIO):
    """Drops what can't be written: a pipe's reader is gone, a terminal is closed, a log's disk is full."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def mend_streams():
    """Give the process three standard streams that can be written to, whatever it was started with.

    Python has None for a stream that is closed at the start, and the next file that is opened takes its number: what a
    library writes to number 2 would then end up in a checkpoint. So closed numbers are opened on the null device. A
    character that a stream's encoding lacks is written as an escape sequence.

    Streams that are not the process's own (a notebook's, a test's) are left as they are.
    """
    for number in range(3):  # all of them first, as a stream that is opened takes a free number too
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number, which is this
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8", errors="backslashreplace"))
        elif number and type(stream) is io.TextIOWrapper and stream.fileno() == number:
            setattr(sys, name, _mended(stream))


def _mended(stream):
    with contextlib.suppress(OSError):
        stream.flush()
    file = _Stream(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        file if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
