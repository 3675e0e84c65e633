"""Reading torch's own files (`.pt`, `.pth`, `.bin`) without running them, in both their formats.

Since torch 1.6 a file is an uncompressed zip of a pickle and one entry for each storage; before, pickles followed by
the storages. Either is read by the machine of pickles.py. Tensors lie in the mapped file until they are used.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from snrkit.checkpoints.pickles import DTYPES, Allowance, Machine, Name, Storage, mapped
from snrkit.errors import SnrkitError

ZIP, MAGIC = b"PK\x03\x04", 0x1950A86A20F9469CFC6C
MOST_ENTRIES = 100_000
HEADER, PICKLE = 30, "data.pkl"  # bytes of a zip's local header before the name; the entry of the objects


def read_torch(path: Path) -> Any:
    """What a file of torch holds, as in read_pickle. SnrkitError says what is wrong with it; nothing of it is run."""
    data = mapped(path)
    try:
        if data[:4] == ZIP:
            return _zipped(path, memoryview(data))
        return _older(memoryview(data))
    except SnrkitError as error:
        raise SnrkitError(f"{path} {error}.") from None


def _zipped(path: Path, data: memoryview) -> Any:
    entries = _entries(path, data)
    main = next((name for name in entries if name.split("/")[-1] == PICKLE and name.count("/") <= 1), None)
    if main is None:
        raise SnrkitError("is a zip without data.pkl, and so none of torch's")
    folder = main.removesuffix(PICKLE)
    if bytes(entries.get(f"{folder}byteorder", memoryview(b"little"))) != b"little":
        raise SnrkitError("was written on a machine of the other byte order")
    known: dict[str, Storage] = {}

    def find(what: Any) -> Storage:
        dtype, key, count = _asked(what)
        if key not in known:
            held = entries.get(f"{folder}data/{key}")
            if held is None or len(held) < count * dtype.itemsize:
                raise SnrkitError(f"lacks the numbers of storage {key[:20]}")
            known[key] = _numbers(held[: count * dtype.itemsize], dtype)
        return known[key]

    return Machine(entries[main], persistent=find).run()


def _entries(path: Path, data: memoryview) -> Mapping[str, memoryview]:
    """The entries of a zip, each a part of the file, none of them compressed."""
    found: dict[str, memoryview] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        raise SnrkitError("is no whole zip") from None
    if len(listed) > MOST_ENTRIES:
        raise SnrkitError("has more entries than any checkpoint")
    for entry in listed:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise SnrkitError("is a compressed zip, as torch writes none")
        header = data[entry.header_offset : entry.header_offset + HEADER]
        if len(header) < HEADER or header[:4] != ZIP:
            raise SnrkitError("is a damaged zip")
        start = entry.header_offset + HEADER + _short(header, 26) + _short(header, 28)
        if start + entry.file_size > len(data):
            raise SnrkitError("is a damaged zip")
        found[entry.filename] = data[start : start + entry.file_size]
    return found


def _short(data: memoryview, place: int) -> int:
    return int.from_bytes(data[place : place + 2], "little")


def _asked(what: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, key, count) of a persistent id, which is always a storage."""
    usual = isinstance(what, tuple) and len(what) >= 5 and what[0] == "storage" and isinstance(what[1], Name)
    if not usual or not isinstance(what[2], str) or not isinstance(what[4], int) or what[4] < 0:
        raise SnrkitError("holds a persistent id that is no storage")
    dtype = DTYPES.get(what[1].full.removeprefix("torch."))
    if dtype is None:
        raise SnrkitError("stores numbers of a kind that is not known")
    return dtype, what[2], what[4]


def _numbers(content: memoryview, dtype: torch.dtype) -> Storage:
    return Storage(torch.frombuffer(content, dtype=dtype) if len(content) else torch.zeros(0, dtype=dtype))


def _older(data: memoryview) -> Any:
    """Magic number, protocol, machine, objects and keys, a pickle each; then the storages in the order of the keys.

    The objects are read twice: to know which storages there are, and again when these are found behind the keys.
    """
    left = Allowance()
    place, asked = 0, dict[str, tuple[torch.dtype, int]]()

    def note(what: Any) -> Storage:
        dtype, key, count = _asked(what)
        if count * dtype.itemsize > len(data):
            raise SnrkitError("is cut short, or lies about its lengths")
        asked[key] = (dtype, count)
        return Storage(torch.zeros(count, dtype=dtype, device="meta"))

    def step(persistent: Callable[[Any], Any] | None = None) -> Any:
        nonlocal place
        machine = Machine(data[place:], left, persistent)
        value = machine.run()
        place += machine.place
        return value

    if bytes(data[:1]) != b"\x80" or step() != MAGIC:
        raise SnrkitError("is no file of torch's")
    step(), step()
    objects = place
    step(note)
    keys = step()
    found = _rows(data[place:], keys, asked)

    def find(what: Any) -> Storage:
        key = _asked(what)[1]
        if key not in found:
            raise SnrkitError(f"lacks the numbers of storage {key[:20]}")
        return found[key]

    return Machine(data[objects:], left, find).run()


def _rows(data: memoryview, keys: Any, asked: Mapping[str, tuple[torch.dtype, int]]) -> Mapping[str, Storage]:
    """The storages that lie one behind the other, each after its length, by key."""
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in asked for key in keys):
        raise SnrkitError("lists storages that it does not use")
    machine, found = Machine(data), dict[str, Storage]()
    for key in keys:
        dtype, count = asked[key]
        if machine.number("<q") != count:
            raise SnrkitError("lies about how many numbers it stores")
        found[key] = _numbers(machine.take(count * dtype.itemsize), dtype)
    return found


def state_dict(content: Any) -> Mapping[str, torch.Tensor]:
    """The tensors by name of what a file holds; SnrkitError where it is no such mapping."""
    if isinstance(content, dict) and content and all(isinstance(v, torch.Tensor) for v in content.values()):
        return {str(name): value for name, value in content.items()}
    raise SnrkitError("holds no mapping of names to tensors")
