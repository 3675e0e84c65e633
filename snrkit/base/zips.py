"""Zips that are read without trust: their list in proportion to the file, no name twice, entries within bounds.

Entries are stored or deflated, as all writers of images and arrays do by default; other methods may ask for gigabytes
of memory before they give a byte. Nothing is ever unpacked to the disk.
"""

import zipfile
import zlib
from io import BufferedReader
from pathlib import Path

from snrkit.base.regular import open_regular

LARGE_LIST = 2**20  # bytes of the list of entries, from which on it is not more than two thirds of the file
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class _Reader(BufferedReader):
    """A file of which no more than `largest` bytes are read at a time while the list of entries is."""

    largest: int | None = None

    def read(self, size: int | None = -1) -> bytes:
        if self.largest is not None and size is not None and size > self.largest:
            raise zipfile.BadZipFile("its list of entries is larger than its entries can be")
        return super().read(size)


class OpenZip(zipfile.ZipFile):
    """A zip to read from. SnrkitError where it is no regular file; raises one of DAMAGED where it is no zip."""

    reader: _Reader | None = None

    def __init__(self, path: Path) -> None:
        found = open_regular(path)
        size = found.seek(0, 2)
        self.reader = reader = _Reader(found.detach())
        reader.largest = max(LARGE_LIST, 2 * size // 3)
        try:
            super().__init__(reader)
            reader.largest = None
            if len(self.NameToInfo) < len(self.filelist):
                raise zipfile.BadZipFile("it lists a name twice")
        except BaseException:
            reader.close()
            raise

    def close(self) -> None:
        """Close the file, too."""
        super().close()
        if self.reader is not None:
            self.reader.close()


def check_entry(entry: zipfile.ZipInfo, largest: int) -> None:
    """ValueError for an entry that is encrypted, packed by another method, or unpacks to over `largest` bytes."""
    if entry.flag_bits & 1:
        raise ValueError("it is encrypted; pack it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed by a method other than store and deflate; pack it by one of these")
    if entry.file_size > largest:
        raise ValueError(f"it unpacks to {entry.file_size:,} bytes, more than the {largest:,} of its kind")


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, largest: int) -> bytes:
    """The content of an entry, at most what it says to hold. Raises one of DAMAGED."""
    check_entry(entry, largest)
    with archive.open(entry) as opened:
        content = opened.read(entry.file_size)  # a number, without which all that is packed would be unpacked
    if len(content) != entry.file_size:
        raise EOFError("it ends too early")
    return content
