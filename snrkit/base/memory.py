"""Memory that was freed, given back to the system."""

import ctypes
import sys


def give_back() -> None:
    """Have the allocator give back what it holds free between arrays; where it knows no way, nothing happens.

    glibc keeps holes of up to 32 MiB for later, which is faster, and adds up to gigabytes where arrays of that size
    come and go between others that stay.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
