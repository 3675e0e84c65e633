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
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from snrkit.base import ahead, background

CUDA = torch.device("cuda", 0)
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")
LISTS = ("cat", "stack")  # which take no numbers of the host either


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


class Pretended(TorchDispatchMode):
    """Runs what is asked of the device, and notes where the host waits for it: (what, whether in the main thread).

    One for each thread, which share their notes.
    """

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def wait(self, name):
        self.waits.append((name, threading.current_thread() is threading.main_thread()))

    def __torch_dispatch__(self, function, types, given=(), named=None):
        flat, shape = tree_flatten((given, dict(named or {})))
        there = [isinstance(each, OnDevice) for each in flat]
        given, named = tree_unflatten([each.held if on else each for each, on in zip(flat, there, strict=True)], shape)
        named.pop("pin_memory", None)
        target = any(there)
        if (asked := named.get("device")) is not None:
            target = torch.device(asked).type in ("cuda", "meta")
            named["device"] = torch.device("cpu")
        self._look(function.overloadpacket.__name__, flat, there, target, named)
        found = function(*given, **named)
        if not target:
            return found
        known = {id(each.held): each for each, on in zip(flat, there, strict=True) if on}
        return tree_map_only(Tensor, lambda each: known[id(each)] if id(each) in known else OnDevice(each), found)

    def _look(self, name, flat, there, target, named):
        """Note a wait; RuntimeError where tensors of both sides are mixed, but for numbers of the host."""
        if name in ("_to_copy", "copy_"):
            crosses = there[0] != (target if name == "_to_copy" else there[1])
            if crosses and not (named.get("non_blocking") or (name == "copy_" and flat[2:3] == [True])):
                self.wait("to the device" if there[0] == (name == "copy_") else "to the host")
        elif any(there) and name in READS:
            self.wait("read")
        elif any(there) and any(
            isinstance(each, Tensor) and not on and (each.ndim or name in LISTS)
            for each, on in zip(flat, there, strict=True)
        ):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """Waits for the device of what runs inside, in order; threads ahead of training included."""
    waits: list = []
    tolist = Tensor.tolist

    class Event:
        """One of the device, which has done all that it was asked."""

        def record(self, stream):
            pass

        def synchronize(self):
            waits.append(("event", threading.current_thread() is threading.main_thread()))

    def read(tensor):
        if not isinstance(tensor, OnDevice):
            return tolist(tensor)
        waits.append(("read", threading.current_thread() is threading.main_thread()))
        return tolist(tensor.held)

    class Pool(ThreadPoolExecutor):
        """Threads that know the device too."""

        def submit(self, work, *given):
            def there():
                with Pretended(waits):
                    return work(*given)

            return super().submit(there)

    with monkeypatch.context() as patch:
        for module in (ahead, background):
            patch.setattr(module, "ThreadPoolExecutor", Pool)
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(Tensor, "tolist", read)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "current_stream", lambda device: None)
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "pretended")
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (2**37, 2**37))
        for name in ("max_memory_allocated", "reset_peak_memory_stats", "empty_cache"):
            patch.setattr(torch.cuda, name, lambda *_: 0)
        with Pretended(waits):
            yield waits
