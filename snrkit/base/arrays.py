"""Arrays of .npz files, which are zips: no objects, and no more memory than the file can fill."""

import math
import tokenize
from pathlib import Path
from typing import Any
from zipfile import ZipInfo

import numpy as np

from snrkit.base import zips
from snrkit.base.zips import OpenZip, check_entry

LARGE, DENSEST = 2**28, 100  # bytes, from which on an array is not more than so many times what is stored of it
HEADERS = (TypeError, IndexError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError)  # of an array's text
DAMAGED = (*zips.DAMAGED, *HEADERS)


def array_names(path: Path) -> list[str]:
    """What the arrays of a file are called. Raises one of DAMAGED where it is none, SnrkitError for a special file."""
    with OpenZip(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def array_shape(path: Path, name: str) -> tuple[int, ...]:
    """The shape of one of its arrays, by what stands before its numbers. Raises as `read_array`."""
    with OpenZip(path) as archive:
        return _checked(archive, name)[1]


def read_array(path: Path, name: str) -> np.ndarray[Any, Any]:
    """One of its arrays. Raises as `array_names`, before memory is asked for, where it is not what it says."""
    with OpenZip(path) as archive:
        entry, _ = _checked(archive, name)
        with archive.open(entry) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def _checked(archive: OpenZip, name: str) -> tuple[ZipInfo, tuple[int, ...]]:
    """The entry of an array, and its shape."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.file_size > max(LARGE, DENSEST * entry.compress_size):
        raise ValueError(f"{name} unpacks to {entry.file_size:,} bytes, over {DENSEST} times what is stored")
    check_entry(entry, entry.file_size)
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
    return entry, shape
