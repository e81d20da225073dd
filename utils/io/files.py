"""Files that a later step reads: whole or not there, and the errors of a disk that takes no more."""

import contextlib
import errno
import json
import logging
import os
import sys
import zlib
from pathlib import Path

REMEDIES = {  # errors that the user can mend, whatever file they strike
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "make it writable, or set output_base to another folder",
    errno.EACCES: "make it accessible, or set output_base to another folder",
    errno.EPERM: "make it accessible, or set output_base to another folder",
    errno.EIO: "look after that disk",
}


@contextlib.contextmanager
def naming(path):
    """Put the name of the file into an OSError from inside: that of a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else it has a text of its own
            error.filename = str(path)
        raise


def write_atomically(path, content):
    """Write a whole file or nothing: it is written aside, then put in place.

    Parameters
    ----------
    path : str or Path
        The file; folders that are missing are made.
    content : str, bytes or callable
        Its content; text is written as UTF-8. A callable writes it to the open binary file that it is given.

    Raises
    ------
    OSError
        Names `path`; what was there before is unharmed.
    """
    path = Path(path)
    # In the same folder, because os.replace is atomic only within a file system; one name per process, so that two
    # writers don't meet.
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name with no content
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def write_json(path, content):
    """Write an object with a checksum of itself, for `read_json`.

    Parameters
    ----------
    path : str or Path
    content : dict
        What JSON can hold.
    """
    write_atomically(path, json.dumps({**content, "crc32": _checksum(content)}))


def read_json(path):
    """Read what `write_json` has written.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    dict
        Without the checksum; a file that has none is taken as it is.

    Raises
    ------
    ValueError
        No object is in it, or not the one that was written.
    """
    content = json.loads(Path(path).read_bytes())
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    checksum = content.pop("crc32", None)
    if checksum is not None and checksum != _checksum(content):
        raise ValueError("its checksum differs")
    return content


def _checksum(content):
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


class LogFile(logging.FileHandler):
    """A log file whose full disk ends the run in one line, where logging would print a traceback a message."""

    def handleError(self, record):
        """Pass on what the disk says."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        with naming(self.baseFilename):
            raise error
