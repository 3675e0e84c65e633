"""Pickles of checkpoints: plain values, records of objects, and tensors that lie in the file until they are used.

What a file may name is a short list; anything else is refused by its name, and nothing of it is run (machine.py).

Storages, the numbers that tensors are views of, are written in two ways. Since torch 1.6 torch's own files hold
them beside the pickle (torch_files.py). Older files, and to this day every storage within a plain pickle, consist of
five pickles (a magic number, a protocol, facts of the machine, the objects, and the keys of their storages), followed
by the length and the numbers of each key's storage.
"""

import math
import mmap
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError, reason_of
from snrkit.base.regular import open_regular
from snrkit.checkpoints.machine import LONGEST_NAME, Allowance, Held, Inert, Name, empty, program

DEPTH = 8  # dimensions of a tensor
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:]  # the first program of the older format
DTYPES = {
    "torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}  # fmt: skip
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
STORED = "torch.storage._load_from_bytes"
RECORDED = {
    PERSISTENT, "torch.Size", "torch.device", "argparse.Namespace", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct", "numpy.ndarray", *DTYPES, *map(str, DTYPES.values()),
}  # fmt: skip
LAYERS = "torch.nn.modules."  # classes under this name are recorded too


@dataclass(slots=True, eq=False)
class Storage(Inert):
    """A storage of torch: numbers in the file, of which tensors are views."""

    values: Tensor  # (n,)


def _listed(*args: Any) -> list[Any]:
    """A set, as a list: its members may be what cannot be in a set."""
    if len(args) != 1 or not isinstance(args[0], list):
        raise SnrkitError("makes a set of something else than a list")
    return args[0]


def _tensor(*args: Any) -> Held:
    """A view of a storage, which must hold it, as large as its shape at most."""
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise SnrkitError("makes a tensor of something else than stored numbers")
    values, offset, size, stride = args[0].values, *args[1:4]
    shaped = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= DEPTH
    if not shaped or not all(isinstance(n, int) and 0 <= n < 2**62 for n in (offset, *size, *stride)):
        raise SnrkitError("holds a tensor with an impossible shape")
    count, last = math.prod(size), offset + sum(max(n - 1, 0) * step for n, step in zip(size, stride, strict=True))
    if count > len(values) or (count and last >= len(values)):
        raise SnrkitError("holds a tensor that is larger than what is stored of it")
    return Held(torch.as_strided(values, size, stride, offset))


def _parameter(*args: Any) -> Held:
    """Its tensor."""
    if not args or not isinstance(args[0], Held) or not isinstance(args[0].content, Tensor):
        raise SnrkitError("makes a parameter of something else than a tensor")
    return args[0]


def _unknown(*args: Any) -> Storage:
    raise SnrkitError("stores numbers in a form that is not known")


MADE: Mapping[str, Callable[..., Any]] = {
    "dnnlib.util.EasyDict": empty,
    "builtins.set": _listed,
    "__builtin__.set": _listed,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    STORED: _unknown,
}


def meaning(name: str) -> Callable[..., Any] | None:
    """What a call of a name makes, None for a record of it. SnrkitError where it is not known."""
    if name not in MADE and name not in RECORDED and not (name.startswith(LAYERS) and len(name) <= LONGEST_NAME):
        raise SnrkitError(f"names {name[:80]}, which no checkpoint of this kind needs; nothing of it was run")
    return MADE.get(name)


def asked(what: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, key, count) of a persistent id, which is always a storage."""
    if not isinstance(what, tuple) or len(what) < 5 or what[0] != "storage" or not isinstance(what[1], Name):
        raise SnrkitError("holds a persistent id that is no storage")
    kind, key, count = what[1].full, what[2], what[4]
    if not isinstance(key, str) or len(key) > LONGEST_NAME or not isinstance(count, int) or count < 0:
        raise SnrkitError("holds a persistent id that is no storage")
    if kind not in DTYPES:
        raise SnrkitError("stores numbers of a kind that is not known")
    return DTYPES[kind], key, count


def numbers(data: memoryview, dtype: torch.dtype, count: int) -> Storage:
    """The numbers that some bytes begin with, which stay where they are."""
    if count * dtype.itemsize > len(data):
        raise SnrkitError("is cut short, or lies about its lengths")
    return Storage(torch.frombuffer(data, dtype=dtype, count=count) if count else torch.zeros(0, dtype=dtype))


def older(data: memoryview, left: Allowance) -> Any:
    """What the older format holds. Its objects run twice: to know the sizes of storages, and when these are found."""
    magic, data = program(data, left)
    if magic.code != MAGIC:
        raise SnrkitError("is no file of torch's")
    for _ in ("protocol", "machine"):
        _, data = program(data, left)
    objects, data = program(data, left)
    keys, behind = program(data, left)
    storages: dict[str, Storage] = {}

    def find(what: Any) -> Storage:
        dtype, key, count = asked(what)
        if key not in storages:
            storages[key] = Storage(numbers(behind, dtype, count).values.to("meta"))
        return storages[key]

    objects.run(meaning, find)
    storages |= _found(storages, keys.run(meaning), behind)
    return objects.run(meaning, find)


def _found(asked_for: Mapping[str, Storage], keys: Any, data: memoryview) -> Mapping[str, Storage]:
    """The storages that lie one behind the other, by key."""
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in asked_for for key in keys):
        raise SnrkitError("lists storages that it does not use")
    found: dict[str, Storage] = {}
    for key in keys:
        values = asked_for[key].values
        if data[:8] != len(values).to_bytes(8, "little"):
            raise SnrkitError("lies about how many numbers it stores")
        found[key] = numbers(data[8:], values.dtype, len(values))
        data = data[8 + values.nbytes :]
    if missing := asked_for.keys() - found.keys():
        raise SnrkitError(f"is missing the numbers of storage {min(missing)[:20]}")
    return found


def mapped(path: Path) -> memoryview:
    """A file's bytes, read from the disk when they are used; what is written to them stays in memory."""
    try:
        with open_regular(path) as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise SnrkitError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise SnrkitError(f"{path} is empty.") from None


def read_pickle(path: Path) -> Any:
    """What a pickle file holds. SnrkitError says what is wrong with it."""
    data, left = mapped(path), Allowance()
    if bytes(data[:1]) != pickle.PROTO:
        raise SnrkitError(f"{path} is no pickle.")

    def stored(*args: Any) -> Storage:
        held = args[0] if len(args) == 1 else None
        if not isinstance(held, Held) or not isinstance(held.content, memoryview):
            return _unknown()
        storage = older(held.content, left)
        return storage if isinstance(storage, Storage) else _unknown()

    try:
        return program(data, left)[0].run(lambda name: stored if name == STORED else meaning(name))
    except SnrkitError as error:
        raise SnrkitError(f"{path} {reason_of(error)}.") from None
