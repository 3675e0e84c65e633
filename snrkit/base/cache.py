"""What may be made again is kept in a cache, which is believed only where its content fits its checksum.

$SNRKIT_CACHE, else ~/.cache/snrkit, holds classifiers, components of pixels, reference statistics, the checksums of
large files, and what was found of sets of images. A folder that others may write to is refused: whoever can write there
decides scores. Decoded pixels lie there too (`keep_large`), MOST_LARGE bytes at most: those that were used least
recently give way.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.files import checksum, disk_errors, remove_abandoned, write_bytes
from snrkit.base.gradual import Gradual
from snrkit.base.regular import checksum_of, open_regular
from snrkit.base.sealed import read_json, write_json
from snrkit.base.tensors import read_tensors, write_tensors

MOST_LARGE = 2**32  # bytes of decoded pixels, all together
SPARED = 4  # as many times what is kept must be free on its disk
LARGE_ENDING = ".bytes"
LARGE = 2**26  # bytes of a file from which on its checksum is kept


def cache_folder() -> Path:
    """Where it lies. It need not be there."""
    return Path(os.environ.get("SNRKIT_CACHE", Path.home() / ".cache" / "snrkit"))


def open_cache() -> Path | None:
    """The cache, made where it is absent; None where that cannot be. SnrkitError where others may write to it."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError:  # a home that cannot be written to, for one
        return None
    remedy = "set SNRKIT_CACHE to a folder of your own"
    if hasattr(os, "geteuid") and found.st_uid not in (0, os.geteuid()):
        raise SnrkitError(f"the cache {folder} belongs to another user, who would decide scores; {remedy}.")
    if hasattr(os, "geteuid") and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SnrkitError(
            f"the cache {folder} may be written to by others, who would decide scores; run chmod go-w {folder}, or "
            f"{remedy}."
        )
    remove_abandoned(folder)
    return folder


def kept(name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The tensors that the cache keeps under a name that holds a hash of all they depend on, else made and kept."""
    found = known(name)
    return _taken(name, make()) if found is None else found


def keeping(name: str, making: Gradual[Mapping[str, Tensor]]) -> Gradual[Mapping[str, Tensor]]:
    """As `kept`, of work that says how far it has come, and is not begun where the cache has what it makes."""
    found = known(name)
    return _taken(name, (yield from making)) if found is None else found


def _taken(name: str, made: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What was made, as it is kept."""
    found = {key: tensor.detach().cpu().contiguous() for key, tensor in made.items()}
    keep(name, found)
    return found


def keep(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Have the cache, where there is one, keep tensors under a name that holds a hash of all they depend on."""
    folder = open_cache()
    if folder is not None:
        closed = "set SNRKIT_CACHE to a folder that may be written to"
        with disk_errors(f"writing to the cache {folder}", "free space, or set SNRKIT_CACHE to another folder", closed):
            write_tensors(folder / f"{name}.safetensors", tensors, name)


def known(name: str) -> Mapping[str, Tensor] | None:
    """As `kept`, but None where the cache has them not, or damaged."""
    folder = open_cache()
    if folder is not None:
        with contextlib.suppress(SnrkitError):
            return read_tensors(folder / f"{name}.safetensors", name)
    return None


def content_digest(path: Path) -> str:
    """The checksum of a file's whole content. That of a large file is kept in the cache until it changes.

    A file is held to be unchanged while its size, inode and times of change are.
    """
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
        if found.st_size < LARGE:
            return checksum_of(file)
        marks = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        folder = open_cache()
        record = None if folder is None else folder / f"digest-{checksum(repr(marks).encode())}.json"
        with contextlib.suppress(SnrkitError):
            stored = {} if record is None else read_json(record)
            if stored.get("marks") == marks and isinstance(stored.get("digest"), str):
                return str(stored["digest"])
        digest = checksum_of(file)
    with contextlib.suppress(OSError):  # a cache that cannot be written to is none
        if record is not None:
            write_json(record, {"marks": marks, "digest": digest})
    return digest


def keep_large(name: str, content: memoryview) -> bool:
    """Have the cache keep many bytes. Whether it does: not where room is scarce, nor where it cannot be written to.

    The name holds a hash of all they depend on. They carry no checksum: who reads them must know it.
    """
    folder = open_cache()
    if folder is None or len(content) > MOST_LARGE:
        return False
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free >= SPARED * len(content):
            _give_way(folder, len(content))
            write_bytes(folder / f"{name}{LARGE_ENDING}", content, sync=False)
            return True
    return False


def read_large(name: str, into: memoryview) -> bool:
    """Fill memory with the bytes that the cache keeps. Whether it does, and they are as many."""
    folder = open_cache()
    if folder is None:
        return False
    path = folder / f"{name}{LARGE_ENDING}"
    with contextlib.suppress(OSError, SnrkitError), open_regular(path, len(into)) as file:
        os.utime(path)  # it was used last
        return file.readinto(into) == len(into)
    return False


def _give_way(folder: Path, needed: int) -> None:
    """Delete what was used least recently until as many bytes more are within the bound."""
    found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in folder.glob(f"*{LARGE_ENDING}"))
    total = needed + sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= MOST_LARGE:
            return
        path.unlink(missing_ok=True)
        total -= size
