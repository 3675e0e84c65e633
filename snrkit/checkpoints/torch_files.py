"""Torch's own files (`.pt`, `.pth`, `.bin`), read without running them, in both their formats.

Since torch 1.6 a file is an uncompressed zip of a pickle and one entry for each storage; before, it was pickles
followed by the storages (pickles.py). Tensors lie in the mapped file until they are used.
"""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from snrkit.base.errors import ConfigError, SnrkitError, reason_of
from snrkit.checkpoints.machine import Allowance, program
from snrkit.checkpoints.pickles import Storage, asked, mapped, meaning, numbers, older

ZIP, HEADER, PICKLE = b"PK\x03\x04", 30, "data.pkl"  # a local header's bytes before the name; the entry of the objects
LARGEST_DIRECTORY = 2**23  # bytes of a zip's list of entries, some hundred each


def read_torch(path: Path) -> Any:
    """What a file of torch holds, as in read_pickle. SnrkitError says what is wrong with it; nothing of it is run."""
    data = mapped(path)
    try:
        if data[:4] == ZIP:
            return _zipped(_entries(path, data))
        if bytes(data[:1]) != pickle.PROTO:
            raise SnrkitError("is no file of torch's")
        return older(data, Allowance())
    except SnrkitError as error:
        raise SnrkitError(f"{path} {reason_of(error)}.") from None


def _zipped(entries: Mapping[str, memoryview]) -> Any:
    main = next((name for name in entries if name.split("/")[-1] == PICKLE and name.count("/") <= 1), None)
    if main is None:
        raise SnrkitError("is a zip without data.pkl, and so none of torch's")
    folder = main.removesuffix(PICKLE)
    if entries.get(f"{folder}byteorder", b"little") != b"little":
        raise SnrkitError("was written on a machine of the other byte order")
    stored = {name.removeprefix(f"{folder}data/"): content for name, content in entries.items()}
    storages: dict[str, Storage] = {}

    def find(what: Any) -> Storage:
        dtype, key, count = asked(what)
        if key not in storages:
            if key not in stored:
                raise SnrkitError(f"is missing the numbers of storage {key[:20]}")
            storages[key] = numbers(stored[key], dtype, count)
        return storages[key]

    return program(entries[main], Allowance())[0].run(meaning, find)


class _Directory(io.FileIO):
    """A zip as its list of entries is read: at once, and as long as it says."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > LARGEST_DIRECTORY:
            raise SnrkitError("has more entries than any checkpoint")
        return super().read(LARGEST_DIRECTORY if size is None or size < 0 else size) or b""


def _entries(path: Path, data: memoryview) -> Mapping[str, memoryview]:
    """The entries of a zip, each a part of the file, none of them compressed."""
    found: dict[str, memoryview] = {}
    try:
        with _Directory(path) as file, zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        raise SnrkitError("is no whole zip") from None
    for entry in listed:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise SnrkitError("is a compressed zip, as torch writes none")
        header = data[entry.header_offset : entry.header_offset + HEADER]
        start = entry.header_offset + HEADER + sum(int.from_bytes(header[k : k + 2], "little") for k in (26, 28))
        if header[:4] != ZIP or start + entry.file_size > len(data):
            raise SnrkitError("is a damaged zip")
        found[entry.filename] = data[start : start + entry.file_size]
    return found


def weights_in(path: Path, entry: str | None, key: str = "model.path") -> Mapping[str, Tensor]:
    """The weights of a torch file, under `entry` or, without one, under ema where there is that.

    ConfigError where there are none; `key` of an experiment named the file.
    """
    try:
        return weights_of_file(read_torch(path), entry)
    except SnrkitError as error:
        text = str(error) if str(path) in str(error) else f"{path} {error}."
        raise ConfigError(f"{key}: {text}") from None


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
