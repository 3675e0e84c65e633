"""Writing that leaves a file whole or absent, whatever happens to the process or the power."""

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from snrkit.base.errors import SnrkitError

CHECKSUM_BYTES = 16
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)  # a place where nothing may, or can, be written
WRITABLE = "choose a folder that may be written to"
ABANDONED = 86_400  # seconds after which the unfinished file of another machine's process is held to be left over


def checksum(content: bytes) -> str:
    """Of some bytes: BLAKE2b, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).hexdigest()


def sync_folder(path: Path) -> None:
    """Have the names of a folder outlast a loss of power, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Have a file's content outlast a loss of power."""
    with path.open("rb+" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    """Where `path` is written before it is renamed: a name that says which process of which machine writes it."""
    return path.with_name(f".{path.name[:100]}.{_node()}.{os.getpid()}.tmp")


def _node() -> str:
    """The whole name of this machine, without dots, which separate the parts of a temporary's."""
    return platform.node().replace(".", "-")[-60:]


def write_bytes(path: Path, content: bytes | memoryview, sync: bool = True) -> None:
    """Write through a temporary file in the same folder, then rename; `sync` also survives a loss of power."""
    with new_file(path, sync) as file:
        file.write(content)


@contextlib.contextmanager
def new_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path` when the block ends well, and vanishes when it does not.

    What lies at `path` stays until then; `sync` also survives a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with _naming(path), temporary.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if sync:
            with _naming(path):
                sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have an error of the disk say of which file it is, which the system does not once a file is open."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8, through a temporary file as write_bytes does."""
    write_bytes(path, content.encode())


def check_out(path: Path, suffix: str, overwrite: bool) -> None:
    """SnrkitError where a command cannot, or may not, write its file here: asked before it works for it."""
    if path.suffix.lower() != suffix:
        raise SnrkitError(f"-o {path} does not end in {suffix}; name the file that is to be written.")
    if path.is_dir():
        raise SnrkitError(f"{path} is a folder; name another file with -o.")
    if path.exists() and not overwrite:
        raise SnrkitError(f"{path} exists already; give --overwrite, or name another file with -o.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise SnrkitError(f"{there} is no folder that may be written to; name another file with -o.")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    What lies at `path` stays until then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for entry in (temporary, *temporary.rglob("*")):
            sync_folder(entry) if entry.is_dir() else sync_file(entry)
        if path.exists():
            remove_folder(path)
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Delete a folder, which is never half there: it is renamed first. SnrkitError where the disk fails."""
    old = _temporary(path.with_name(f"{path.name}.old"))
    remedy = "see to its permissions and run the same command again"
    with disk_errors(f"deleting {path}", remedy, remedy):
        if old.exists():
            shutil.rmtree(old)
        path.replace(old)
        shutil.rmtree(old)


@contextlib.contextmanager
def disk_errors(doing: str, remedy: str, closed: str = WRITABLE) -> Iterator[None]:
    """Turn an error of the disk into one sentence. `closed`: what to do where it may not be written to."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else (error.strerror or str(error))
        if error.errno in CLOSED:
            remedy = closed
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST) and (place := error.filename2 or error.filename):
            remedy = _in_the_way(Path(os.fsdecode(place)))
        raise SnrkitError(f"{doing} failed: {reason}; {remedy}") from None


def _in_the_way(place: Path) -> str:
    """What to do where a file lies in the place of a folder, or a folder in that of a file."""
    above = next((path for path in place.parents if path.exists()), place)
    if not above.is_dir():
        return f"{above} is a file where a folder is wanted: move it away, or name a folder"
    return f"move away what lies in the place of {place}"


def leftovers(folder: Path) -> list[Path]:
    """What interrupted writes left anywhere below a folder: of processes of this machine that are no more, or old."""
    return [path for path in folder.rglob(".*.tmp") if _is_left(path)]


def remove_leftovers(folder: Path) -> None:
    """Delete what interrupted writes left anywhere below a folder."""
    for leftover in leftovers(folder):
        _remove(leftover)


def remove_abandoned(folder: Path, name: str = "*") -> None:
    """Delete what interrupted writes left in a folder itself, by the name of what they wrote."""
    for leftover in [path for path in folder.glob(f".{name[:100]}.*.tmp") if _is_left(path)]:
        _remove(leftover)


def _is_left(path: Path) -> bool:
    """Whether nobody writes a temporary any more."""
    try:
        *_, node, process, _ = path.name.rsplit(".", 3)
        dead = node == _node() and not _alive(int(process))
        return dead or time.time() - path.stat().st_mtime > ABANDONED
    except (OSError, ValueError):
        return False


def _alive(process: int) -> bool:
    if os.name == "nt":  # where 0 would be ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(leftover: Path) -> None:
    if leftover.is_dir() and not leftover.is_symlink():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)
