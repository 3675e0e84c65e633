"""Reading that believes nothing of a path: what is read is a regular file of a possible size.

Never a device, a pipe or a socket, which would hang or have no end. A link is followed to what it points to.
"""

import hashlib
import math
import os
import stat
from io import BufferedReader
from pathlib import Path

from snrkit.base.errors import NotRegularError, SnrkitError
from snrkit.base.files import CHECKSUM_BYTES

PIECE = 2**20  # bytes
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path, largest: float = math.inf) -> BufferedReader:
    """A file for reading. NotRegularError for a folder, a pipe or a device, SnrkitError for over `largest` bytes.

    OSError where it cannot be opened. Nothing is waited for.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
            raise NotRegularError(f"{path} is no file but {kind}; give a regular file.")
        if found.st_size > largest:
            raise SnrkitError(
                f"{path} has {found.st_size:,} bytes, more than the {largest:,} of its kind; give another."
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a file, as open_regular opens it; what grows beyond `largest` while it is read is refused too."""
    with open_regular(path, largest) as file:
        content = file.read(os.fstat(file.fileno()).st_size)
        while more := file.read(PIECE):  # of what grows
            content += more
            if len(content) > largest:
                raise SnrkitError(f"{path} has more than {largest:,} bytes, which no file of its kind has.")
    return content


def file_checksum(path: Path) -> str:
    """As files.checksum, of the content of a regular file, which is read in pieces."""
    with open_regular(path) as file:
        return checksum_of(file)


def checksum_of(file: BufferedReader) -> str:
    """As file_checksum, of an open file from where it stands."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=CHECKSUM_BYTES)).hexdigest()


def check_regular(path: Path, largest: float = math.inf) -> None:
    """Refuse, before another library opens it, what open_regular refuses. OSError where it cannot be opened."""
    open_regular(path, largest).close()
