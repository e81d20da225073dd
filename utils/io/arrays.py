"""Arrays that a cache has kept in a file, read without trust in what the file says of itself."""

import os
import zipfile

import numpy as np


class DamagedArrays(Exception):
    """A file that does not hold the arrays it should; the text is the short reason."""


def read_arrays(path, names):
    """Read some of the arrays that `numpy.savez` has written, running no code and no more memory than the file's size.

    Parameters
    ----------
    path : str
        The npz file.
    names : sequence of str
        Of the arrays.

    Returns
    -------
    dict of str to numpy.ndarray

    Raises
    ------
    DamagedArrays
        No such file, one of another kind, an array missing, one of objects (pickled: loading it could run code), or
        one that claims to be larger than the file.
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
    except (Exception, MemoryError) as error:  # of bytes at random zipfile, tokenize and numpy raise anything
        raise DamagedArrays(" ".join(str(error).split())[:200] or type(error).__name__) from error
