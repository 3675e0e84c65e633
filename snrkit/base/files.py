"""Writing that leaves a file whole or absent, and reading that says what is wrong."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from snrkit.base.errors import SnrkitError, missing

LARGE = 2**26  # bytes of a file from which on its checksum is kept in the cache
CHECKSUM_BYTES = 16


def cache_folder() -> Path:
    """Where classifiers, reference statistics and digests are kept: $SNRKIT_CACHE, else ~/.cache/snrkit."""
    return Path(os.environ.get("SNRKIT_CACHE", Path.home() / ".cache" / "snrkit"))


def checksum(content: bytes) -> str:
    """Of some bytes: BLAKE2b, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).hexdigest()


def content_digest(path: Path) -> str:
    """The checksum of a file's whole content. That of a large file is kept in the cache until it changes.

    A file is held to be unchanged while its size, inode and times of change are.
    """
    found = path.stat()
    if found.st_size < LARGE:
        return checksum(path.read_bytes())
    marks = (path.resolve(), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    kept = cache_folder() / f"digest-{checksum(repr(marks).encode())}"
    with contextlib.suppress(OSError, ValueError):
        text = kept.read_text()
        if len(bytes.fromhex(text)) == CHECKSUM_BYTES:
            return text
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=CHECKSUM_BYTES)).hexdigest()
    with contextlib.suppress(OSError):  # a cache that cannot be written to is none
        write_bytes(kept, digest.encode())
    return digest


def write_bytes(path: Path, content: bytes, sync: bool = True) -> None:
    """Write through a temporary file in the same folder, then rename; `sync` also survives a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8, through a temporary file as write_bytes does."""
    write_bytes(path, content.encode())


def finite(content: Any) -> Any:
    """`content` with every float that JSON cannot hold (the logsnr of pure noise is -inf) replaced by None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    return [finite(value) for value in content] if isinstance(content, list | tuple) else content


def write_json(path: Path, content: Any) -> None:
    """As write_text; finite floats round-trip, others become null."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; SnrkitError when absent or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise missing("file", path, "run the command that makes it first") from None
    except ValueError as error:
        raise SnrkitError(f"{path} is not valid JSON ({error}); delete it and run the command that makes it") from None


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in (path for path in temporary.rglob("*") if path.is_file()):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def disk_errors(doing: str, remedy: str) -> Iterator[None]:
    """Turn an error of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else (error.strerror or str(error))
        raise SnrkitError(f"{doing} failed: {reason}; {remedy}") from None


def remove_leftovers(folder: Path) -> None:
    """Delete what interrupted writes left behind."""
    for leftover in list(folder.rglob(".*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
