"""Reading torch's own files (`.pt`, `.pth`, `.bin`) without running them, in both their formats.

Since torch 1.6 a file is an uncompressed zip of a pickle and one entry for each storage; before, pickles followed by
the storages. Either is read by the machine of pickles.py. Tensors lie in the mapped file until they are used.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.checkpoints.pickles import Allowance, Machine, Storage, asked, counted, mapped, numbers

ZIP, MAGIC = b"PK\x03\x04", 0x1950A86A20F9469CFC6C
LARGEST_DIRECTORY = 2**23  # bytes of a zip's list of entries, some hundred each
END, LOCATOR, LARGE_END, LONGEST_COMMENT = 22, 20, 56, 2**16  # bytes of a zip's last records, from behind
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
        dtype, key, count = asked(what)
        if key not in known:
            held = entries.get(f"{folder}data/{key}")
            if held is None or len(held) < count * dtype.itemsize:
                raise SnrkitError(f"missing the numbers of storage {key[:20]}")
            known[key] = numbers(held[: count * dtype.itemsize], dtype)
        return known[key]

    return Machine(entries[main], persistent=find).run()


def _entries(path: Path, data: memoryview) -> Mapping[str, memoryview]:
    """The entries of a zip, each a part of the file, none of them compressed."""
    found: dict[str, memoryview] = {}
    if _directory(data) > LARGEST_DIRECTORY:
        raise SnrkitError("has more entries than any checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        raise SnrkitError("is no whole zip") from None
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


def _directory(data: memoryview) -> int:
    """Bytes of a zip's list of entries, as its last record says and, before it, that of large files."""
    tail = bytes(data[-END - LONGEST_COMMENT :])
    place = tail.rfind(b"PK\x05\x06")
    if place < 0:
        return 0
    if tail[max(0, place - LOCATOR) : place][:4] != b"PK\x06\x07":
        return int.from_bytes(tail[place + 12 : place + 16], "little")
    large = tail[max(0, place - LOCATOR - LARGE_END) : place]
    return int.from_bytes(large[40:48], "little") if large[:4] == b"PK\x06\x06" else len(data)


def _short(data: memoryview, place: int) -> int:
    return int.from_bytes(data[place : place + 2], "little")


def _older(data: memoryview) -> Any:
    """Magic number, protocol, machine, objects and keys, a pickle each; then the storages in the order of the keys.

    The objects are read twice: to know which storages there are, and again when these are found behind the keys.
    """
    left = Allowance()
    place, uses = 0, dict[str, tuple[torch.dtype, int]]()

    def note(what: Any) -> Storage:
        dtype, key, count = asked(what)
        if count * dtype.itemsize > len(data):
            raise SnrkitError("is cut short, or lies about its lengths")
        uses[key] = (dtype, count)
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
    found = _rows(data[place:], keys, uses)

    def find(what: Any) -> Storage:
        key = asked(what)[1]
        if key not in found:
            raise SnrkitError(f"missing the numbers of storage {key[:20]}")
        return found[key]

    return Machine(data[objects:], left, find).run()


def _rows(data: memoryview, keys: Any, uses: Mapping[str, tuple[torch.dtype, int]]) -> Mapping[str, Storage]:
    """The storages that lie one behind the other, each after its length, by key."""
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in uses for key in keys):
        raise SnrkitError("lists storages that it does not use")
    machine, found = Machine(data), dict[str, Storage]()
    for key in keys:
        found[key] = counted(machine, *uses[key])
    return found


def weights_in(path: Path, entry: str | None) -> Mapping[str, Tensor]:
    """The weights of a torch file, under `entry` or, without one, under ema where there is that. ConfigError."""
    try:
        return weights_of_file(read_torch(path), entry)
    except SnrkitError as error:
        text = str(error) if str(path) in str(error) else f"{path} {error}."
        raise ConfigError(f"model.path: {text}") from None


def weights_of_file(content: Any, entry: str | None) -> Mapping[str, Tensor]:
    """The weights in what a file holds. SnrkitError where there are none."""
    holds = content if isinstance(content, dict) else {}
    if entry is not None and entry not in holds:
        raise SnrkitError(f"has no '{entry[:40]}', which model.entry names")
    chosen = entry or ("ema" if isinstance(holds.get("ema"), dict) else None)
    return _state_dict(content if chosen is None else holds[chosen])


def _state_dict(content: Any) -> Mapping[str, Tensor]:
    """The tensors by name of what a file holds; SnrkitError where it is no such mapping."""
    if isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values()):
        return {str(name): value for name, value in content.items()}
    held = (
        ", ".join(str(key)[:40] for key in list(content)[:5]) if isinstance(content, dict) else type(content).__name__
    )
    raise SnrkitError(f"holds no mapping of names to tensors, but {held}")
