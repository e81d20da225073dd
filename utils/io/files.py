"""Write files whole or not at all, read them back checked, and name the file in a disk's error."""

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

REMEDIES = {  # errors that the user can mend, whatever file they strike
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "make it writable, or set output_base to another folder",
    errno.EACCES: "make it accessible, or set output_base to another folder",
    errno.EPERM: "make it accessible, or set output_base to another folder",
    errno.EIO: "the disk may be failing: check it, or set output_base to another disk",
}


@contextlib.contextmanager
def naming(path: str | Path):
    """Name `path` in an OSError raised inside: the error of a full disk names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else the error has a text of its own
            error.filename = str(path)
        raise


def _aside(path: Path) -> Path:
    """Name a temporary neighbour of `path`, in the same folder because os.replace can't cross file systems."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` when the block ends without an error. Missing folders are made.

    An error leaves what was at `path` unharmed; an OSError names `path`.
    """
    path = Path(path)
    aside = _aside(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name with no content
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Make a folder that becomes `path` when the block ends without an error.

    Raises an OSError where `path` is a file, or a folder that is not empty by then.
    """
    path = Path(path).absolute()
    aside = _aside(path)
    try:
        aside.mkdir(parents=True)
        yield aside
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_atomically(path: str | Path, content: str | bytes | Callable[[BinaryIO], object]):
    """Write a whole file or nothing, as `atomic_file` does.

    Text is written as UTF-8. A callable writes the content to the open binary file that it is given.
    """
    with atomic_file(path) as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: str | Path, content: dict, indent: int | None = None):
    """Write an object with a checksum of itself, which `read_json` checks."""
    write_atomically(path, json.dumps({**content, "crc32": _checksum(content)}, indent=indent))


def read_json(path: str | Path) -> dict:
    """Read the object in a JSON file. Its checksum is checked and left out; a file without one is taken as it is.

    Raises
    ------
    OSError
        The file can't be read.
    ValueError
        It holds no object, or not the one that `write_json` wrote; the text says which, in one line.
    """
    try:
        content = json.loads(Path(path).read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no object in it")
        checksum = content.pop("crc32", None)
        if checksum is not None and checksum != _checksum(content):
            raise ValueError("its checksum differs")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return content


def _checksum(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


class LogFile(logging.FileHandler):
    """A log file that raises the error of a full disk, for which logging would print a traceback per message."""

    def handleError(self, record):
        """Raise an OSError with the file's name; handle any other error as logging does."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        with naming(self.baseFilename):
            raise error
