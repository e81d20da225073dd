"""Files that a later step reads: whole or not there."""

import os
from pathlib import Path


def write_atomically(path, content):
    """Write a whole file or nothing: it is written aside, then put in place.

    Parameters
    ----------
    path : str or Path
        The file; folders that are missing are made.
    content : str or bytes
        Its content; text is written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace is atomic only within a file system; one name per process, so that two
    # writers don't meet.
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
