"""A device that is not there: tensors that say they lie on a GPU, hold their values on the host, and note each wait.

Where a GPU would refuse to mix its tensors with those of the host, this one does too, so that code for GPUs is tried
where there are none. Its values are the CPU's, to the bit.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from snrkit.base import ahead, background

CUDA = torch.device("cuda", 0)
READS = (  # what asks the device for a number
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal",
    "is_nonzero", "allclose", "bincount", "repeat_interleave", "linalg_eigh", "_linalg_eigh", "linalg_cholesky_ex",
    "linalg_inv_ex", "_linalg_svd", "_linalg_det", "_linalg_solve_ex",
)  # fmt: skip
STRICT = ("cat", "stack", "index_select", "index_copy", "index_copy_", "searchsorted", "gather", "scatter")
"""What takes no numbers of the host either."""


class OnDevice(Tensor):
    """A tensor of the device that is not there; torch itself takes it for one of `meta`, which holds no values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held):
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="meta"
        )
        made.held = held
        return made

    @property
    def device(self):
        return CUDA

    @property
    def is_cuda(self):
        return True

    def __repr__(self, **_):
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, given=(), named=None):
        raise RuntimeError(f"{function} of a tensor of the device outside of `Pretended`")


def leaves(entries):
    """What lies in lists and tuples, in order; as pytree has it."""
    for each in entries:
        if isinstance(each, list | tuple):
            yield from leaves(each)
        else:
            yield each


def values_of(entry):
    """The same with the values of tensors of the device in their place."""
    if isinstance(entry, list | tuple):
        return type(entry)(map(values_of, entry))
    return entry.held if isinstance(entry, OnDevice) else entry


class Pretended(TorchDispatchMode):
    """Runs what is asked of the device, and notes where the host waits for it: (what, whether in the main thread).

    One for each thread, which share their notes: `waits`, and the `copies` to the host that are under way.
    """

    def __init__(self, waits, copies):
        super().__init__()
        self.waits, self.copies = waits, copies

    def wait(self, name):
        self.waits.append((name, threading.current_thread() is threading.main_thread()))

    def __torch_dispatch__(self, function, types, given=(), named=None):
        flat = [*leaves(given), *leaves((named or {}).values())]
        there = [isinstance(each, OnDevice) for each in flat]
        given, named = values_of(given), {key: values_of(each) for key, each in (named or {}).items()}
        named.pop("pin_memory", None)
        target = any(there)
        if (asked := named.get("device")) is not None:
            target = torch.device(asked).type in ("cuda", "meta")
            named["device"] = torch.device("cpu")
        name = function.overloadpacket.__name__
        self._look(name, flat, there, target, named)
        if name == "copy_" and there[1] and not there[0] and flat[2:3] == [True]:
            return self._sets_out(flat[0], flat[1].held)
        found = function(*given, **named)
        if not target:
            return found
        known = {id(each.held): each for each, on in zip(flat, there, strict=True) if on}

        def on_device(each):
            return known[id(each)] if id(each) in known else OnDevice(each)

        return on_device(found) if isinstance(found, Tensor) else tree_map_only(Tensor, on_device, found)

    def _sets_out(self, host, values):
        """A copy to the host that has not arrived: until an event is waited for, nothing of it is there."""
        host.fill_(torch.nan if host.is_floating_point() else 0)
        self.copies.append((host, values.clone()))
        return host

    def _look(self, name, flat, there, target, named):
        """Note a wait; RuntimeError where tensors of both sides are mixed, but for numbers of the host."""
        masks = any(isinstance(each, Tensor) and each.dtype == torch.bool for each in flat[1:])
        if name in ("_to_copy", "copy_"):
            out = there[0] if name == "_to_copy" else there[1]
            into = target if name == "_to_copy" else there[0]
            asks = bool(named.get("non_blocking")) or (name == "copy_" and flat[2:3] == [True])
            source = flat[0] if name == "_to_copy" else flat[1]
            if into != out and not (asks and (out or getattr(source, "pinned", False))):
                self.wait("to the device" if into else "to the host")
        elif any(there) and (name in READS or (name in ("index", "index_put", "index_put_") and masks)):
            self.wait("read")
        elif any(there) and any(
            isinstance(each, Tensor) and not on and (each.ndim or name in STRICT)
            for each, on in zip(flat, there, strict=True)
        ):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")


class Event:
    """One of the device: copies to the host that were asked for before it was recorded have arrived once it is waited
    for, and not before.
    """

    def __init__(self, waits, copies):
        self.waits, self.copies, self.mine = waits, copies, []

    def record(self, stream):
        self.mine = list(self.copies)
        self.copies.clear()

    def synchronize(self):
        self.waits.append(("event", threading.current_thread() is threading.main_thread()))
        for host, values in self.mine:
            host.copy_(values)


class Pool(ThreadPoolExecutor):
    """Threads that know the device of the thread that hands them work."""

    def submit(self, work, *given):
        def inside():
            with Pretended(Pool.waits, Pool.copies):
                return work(*given)

        return super().submit(inside)


def pinned(tensor):
    """A copy of a tensor of the host from which the device copies without a wait."""
    copy = tensor.clone()
    copy.pinned = True
    return copy


def listed(tensor, waits, tolist=Tensor.tolist):
    """`tolist`, which torch refuses to a class of tensors of one's own."""
    if not isinstance(tensor, OnDevice):
        return tolist(tensor)
    waits.append(("read", threading.current_thread() is threading.main_thread()))
    return tolist(tensor.held)


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """Waits for the device of what runs inside, in order; threads ahead of it and behind it included."""
    waits, copies = Pool.waits, Pool.copies = [], []
    with monkeypatch.context() as patch:
        for module in (ahead, background):
            patch.setattr(module, "ThreadPoolExecutor", Pool)
        patch.setattr(Tensor, "pin_memory", pinned)
        patch.setattr(Tensor, "tolist", lambda tensor: listed(tensor, waits))
        for name, answer in {
            "_lazy_init": None, "current_stream": None, "synchronize": None, "set_device": None,
            "mem_get_info": (2**37, 2**37), "get_device_name": "pretended", "is_bf16_supported": True,
            "max_memory_allocated": 0, "reset_peak_memory_stats": None, "empty_cache": None,
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        patch.setattr(torch.cuda, "Event", lambda: Event(waits, copies))
        with Pretended(waits, copies):
            yield waits
