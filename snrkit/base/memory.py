"""Memory: what was freed, given back to the system, and how torch says that there is none."""

import ctypes
import sys

import torch

from snrkit.base.errors import SnrkitError

CPU_ALLOCATOR = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
"""Of what torch says in a plain RuntimeError where the host has none left."""


def give_back() -> None:
    """Have the allocator give back what it holds free between arrays; where it knows no way, nothing happens.

    glibc keeps holes of up to 32 MiB for later, which is faster, and adds up to gigabytes where arrays of that size
    come and go between others that stay.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device could not give the memory that was asked for."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_ALLOCATOR)


def no_memory() -> SnrkitError:
    """What a command says that was refused memory, and what to do."""
    return SnrkitError(
        "not enough memory; give smaller batches (sample.batch, shift.batch, metrics.batch, or train.accumulate "
        "for parts of a step), or another --device. What was written before is whole, and the same command goes on."
    )
