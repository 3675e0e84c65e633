"""The peak of a process's memory since a moment, which getrusage does not tell: it keeps what came before exec, too."""

import contextlib
import gc
import resource
from pathlib import Path


def forget():
    """Let the peak begin anew at what is held now, where the system can (Linux).

    Cycles that earlier tests left go first: collected later, they would make room for what is to be seen.
    """
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak():
    """MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
