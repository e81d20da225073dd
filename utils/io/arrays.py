"""Read arrays from a cache's file without trusting what the file says of itself."""

import os
import struct
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


def map_array(path: str | Path, name: str) -> np.ndarray:
    """Map an array of a `numpy.savez` file into memory, for a few rows of many; its checksum is not checked.

    Raises
    ------
    DamagedArrays
        The file is missing or of another kind, or has no such array.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            entry = archive.getinfo(f"{name}.npy")
            file.seek(entry.header_offset + 26)  # of the entry's own header, which is 30 bytes and two texts long
            file.seek(entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
            if read_header is None or entry.compress_type != zipfile.ZIP_STORED:
                raise DamagedArrays("it is not as numpy.savez writes it")
            shape, fortran, dtype = read_header(file)
            order = "F" if fortran else "C"
            return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)
    except DamagedArrays:
        raise
    except (Exception, MemoryError) as error:  # as in `read_arrays`
        raise DamagedArrays(" ".join(str(error).split())[:200] or type(error).__name__) from error
