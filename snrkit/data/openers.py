"""Files of a folder and members of a zip by name, with marks by which a set that did not change is known again."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from snrkit.base import zips
from snrkit.base.errors import DataError, plain, reason_of
from snrkit.base.regular import checksum_of, read_regular
from snrkit.base.value import Place
from snrkit.base.zips import OpenZip, read_entry
from snrkit.data.images import LARGEST_IMAGE


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn an error of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{plain(str(path))} cannot be read ({error.strerror}); see to its permissions.") from None


@dataclass(frozen=True, slots=True)
class FolderOpener:
    """Reads files of a folder."""

    path: Place

    def __call__(self, name: str) -> bytes:
        """The content of a file. SnrkitError where it is no regular file or too large for an image."""
        with readable(self.path / name):
            return read_regular(self.path / name, LARGEST_IMAGE)

    def marks(self, names: Sequence[str]) -> Iterator[bytes]:
        """What changes with any file, by what the file system says of it."""
        folder = str(self.path)
        for name in names:
            with readable(path := f"{folder}/{name}"):
                yield os.fsencode(name) + _marks_of(os.stat(path))  # noqa: PTH116 - of tens of thousands of files


class ZipOpener:
    """Reads members of a zip. Each process opens the archive for itself: forked ones would share its position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archives: dict[int, OpenZip] = {}

    def __call__(self, name: str, largest: int = LARGEST_IMAGE) -> bytes:
        try:
            archive = self.archive()
            return read_entry(archive, archive.getinfo(name), largest)
        except zips.DAMAGED as error:
            raise DataError(
                f"{self.path}/{plain(name)} cannot be read ({reason_of(error)}); remove it or pack it again."
            ) from None

    def archive(self) -> OpenZip:
        """The archive, opened in this process. Raises one of DAMAGED where it cannot be."""
        process = os.getpid()
        if process not in self.archives:
            self.archives = {process: OpenZip(self.path)}
        return self.archives[process]

    def names(self) -> list[str]:
        """Of all members that are files. DataError where the archive cannot be read."""
        try:
            return [entry.filename for entry in self.archive().infolist() if not entry.is_dir()]
        except zips.DAMAGED as error:
            raise DataError(
                f"{self.path} is not a zip file or is damaged ({reason_of(error)}); copy or pack it again."
            ) from None

    def marks(self, names: Sequence[str]) -> Iterator[bytes]:
        """What changes with the archive: what the file system says of it, and its list of members."""
        with readable(self.path):
            file = self.archive().reader
            assert file is not None
            yield _marks_of(os.fstat(file.fileno()))
            file.seek(self.archive().start_dir)
            yield checksum_of(file).encode()

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "archives": {}}


class Opener(Protocol):
    """Reads the files of images by name."""

    def __call__(self, name: str) -> bytes:
        """The content of a file. SnrkitError where it cannot be read."""

    def marks(self, names: Sequence[str]) -> Iterator[bytes]:
        """What changes with any of the files."""


def _marks_of(found: os.stat_result) -> bytes:
    return repr((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)).encode()
