"""Read arrays from a cache's file without trusting what the file says of itself."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class DamagedArrays(Exception):
    """A file doesn't hold the arrays that it should; the text is the short reason."""


def read_arrays(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the named arrays of a `numpy.savez` file, running no code from it and taking no more memory than its size.

    Raises
    ------
    DamagedArrays
        The file is missing or of another kind; or an array is missing, holds objects (unpickling them could run code),
        or claims to be larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > os.path.getsize(path):  # savez doesn't compress
            raise DamagedArrays(f"it claims to hold {claimed} bytes")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except DamagedArrays:
        raise
    except (Exception, MemoryError) as error:  # random bytes make zipfile, tokenize and numpy raise anything
        raise DamagedArrays(" ".join(str(error).split())[:200] or type(error).__name__) from error
