"""One process group at a time may write to a run directory: a lock of the system, which a killed process loses.

`.lock` says who holds it. Nothing in a run directory may be a link, whether it is one's own or a stranger's: what is
written or deleted through one lies elsewhere. The run directory itself may be reached through a link.
"""

import contextlib
import errno
import itertools
import os
import platform
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from snrkit.base.errors import BusyError, RunError, unreadable
from snrkit.base.files import disk_errors, remove_abandoned, remove_leftovers, sync_folder
from snrkit.base.signals import ending
from snrkit.experiment.run import Run

MOST_HOLDER = 200  # bytes read of a lock that another process holds
TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
ELSEWHERE = "--runs with a folder on another disk"


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the run's lock, and clear what killed commands left. BusyError when another process has it.

    RunError where the run directory holds a link, or its file system has no locks. UnreadableError where the disk does
    not give what it holds.
    """
    closed = "choose --runs with a folder that may be written to"
    with disk_errors(f"making {run.path}", f"free space or choose {ELSEWHERE}", closed):
        run.path.mkdir(parents=True, exist_ok=True)
    handle = _open(run.path / ".lock")
    try:
        _take(handle, run.path)
        check_links(run)
        remove_leftovers(run.path)
        with contextlib.suppress(OSError):  # a full disk does not keep a lock from holding
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()} since {_now()}\n".encode())
        with ending():
            yield
    finally:
        os.close(handle)


def check_idle(run: Run) -> None:
    """BusyError where another command is writing to a run directory. Nothing is made, and nobody kept from it."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with contextlib.suppress(OSError):  # no lock, or none that can be read: then nobody is known to work there
        handle = os.open(run.path / ".lock", flags)
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in TAKEN:
                raise _busy(handle, run.path) from None
        finally:
            os.close(handle)


@contextlib.contextmanager
def beside(run: Run, folder: Path) -> Iterator[None]:
    """For what writes only into a folder of its own, which it may while another command holds the lock.

    Clears what killed commands left in that folder. RunError where the run directory holds a link.
    """
    check_links(run)
    remove_abandoned(folder)
    with ending():
        yield


def put_aside(run: Run, path: Path) -> Path:
    """Move a damaged file or folder of a run to where nothing reads it; returns where. What lies there stays."""
    wanted = run.damaged / path.relative_to(run.path)
    names = (f"{wanted.name}.{number}" if number else wanted.name for number in itertools.count())
    target = next(place for name in names if not os.path.lexists(place := wanted.with_name(name)))
    remedy = "see to its permissions and run the same command again"
    with disk_errors(f"moving {path}", remedy, remedy):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        sync_folder(target.parent)
        sync_folder(path.parent)
    return target


def check_links(run: Run) -> None:
    """RunError names the first link below a run directory: nothing is written or deleted where one is."""
    for link in links(run):
        raise RunError(
            f"{link} is a link, and a run directory may hold none, as writing and deleting would follow it; put its "
            "target in its place."
        )


def links(run: Run) -> Iterator[Path]:
    """All links below a run directory; none is followed."""
    folders = [run.path] if run.path.is_dir() else []
    while folders:
        for entry in _entries(folders.pop()):
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # deleted by now
        return []
    except OSError as error:
        raise unreadable(Path(folder), error) from None


def _open(path: Path) -> int:
    """The lock's file, which is neither truncated nor followed."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise RunError(f"the lock {path} cannot be opened ({why}); delete it, or choose {ELSEWHERE}.") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise RunError(f"the lock {path} is no file of its own but another's, or no file at all; delete it.")
    return handle


def _take(handle: int, folder: Path) -> None:
    try:
        _lock(handle)
    except OSError as error:
        if error.errno not in TAKEN:
            raise RunError(
                f"{folder} cannot be locked ({error.strerror}): its file system has no locks, which keep two commands "
                f"from writing at once; choose {ELSEWHERE}."
            ) from None
        raise _busy(handle, folder) from None


def _busy(handle: int, folder: Path) -> BusyError:
    holder = os.read(handle, MOST_HOLDER).decode(errors="replace").strip()
    return BusyError(
        f"another process is working in {folder} ({holder or 'which does not say who it is'}); wait until it ends, or "
        "give this run another name."
    )


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
