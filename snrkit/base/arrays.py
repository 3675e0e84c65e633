"""Arrays of .npz files, which are zips: no objects, and no more memory than the file can fill."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

LARGE, DENSEST = 2**28, 100  # bytes, from which on an array is not more than so many times what is stored of it
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def array_names(path: Path) -> list[str]:
    """What the arrays of a file are called. Raises one of DAMAGED where it is none."""
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_array(path: Path, name: str) -> np.ndarray[Any, Any]:
    """One of its arrays. Raises one of DAMAGED, before memory is asked for, where it is not what it says."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        if entry.file_size > max(LARGE, DENSEST * entry.compress_size):
            raise ValueError(f"{name} unpacks to {entry.file_size:,} bytes, over {DENSEST} times what is stored")
        with archive.open(entry) as file:
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            version = np.lib.format.read_magic(file)
            if version not in readers:
                raise ValueError(f"{name} is of format {version}")
            shape, _, dtype = readers[version](file)
            if dtype.hasobject:
                raise ValueError(f"{name} holds objects, which only running them would read")
            if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
                raise ValueError(f"{name} holds other than its {'x'.join(map(str, shape))} numbers")
        with archive.open(entry) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
