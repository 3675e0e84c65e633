"""Our own checkpoints: a folder of safetensors and one JSON, written under another name and renamed when complete.

checkpoints/000120000/     named after the images seen
    network.safetensors    the raw weights
    ema-50000.safetensors  one file per average
    optimizer.safetensors  moments by parameter name
    state.json             images, plain numbers of the training state, a checksum of each file, and one of all this

What is read is all that was written, of these images, and finite.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from snrkit.base.errors import (
    DamagedError,
    DivergedError,
    NotRegularError,
    RunError,
    SnrkitError,
    UnreadableError,
    unreadable,
)
from snrkit.base.files import checksum, disk_errors, new_folder, remove_folder, remove_leftovers
from snrkit.base.records import from_json, to_json
from snrkit.base.regular import file_checksum
from snrkit.base.sealed import read_json, write_json
from snrkit.base.tensors import check_memory, not_finite

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # of a set of tensors, which is part of a path


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds: named sets of tensors, and plain numbers."""

    images: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    numbers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class State:
    """What state.json holds."""

    images: int
    numbers: Mapping[str, Any]
    checksums: Mapping[str, str]  # of each set of tensors, by its name


@dataclass(frozen=True, slots=True)
class Packed:
    """A checkpoint as its files will hold it, on the host: what becomes of the tensors meanwhile changes nothing."""

    images: int
    numbers: Mapping[str, Any]
    files: Mapping[str, bytes]  # of each set of tensors, by its name


def pack_checkpoint(checkpoint: Checkpoint) -> Packed:
    """Copy a checkpoint to the host. DivergedError where a tensor is not finite."""
    if wrong := not_finite({f"{s}/{n}": t for s, part in checkpoint.tensors.items() for n, t in part.items()}):
        raise DivergedError(
            f"training stopped: {wrong} is not finite at {checkpoint.images} images, and is not saved; the last "
            "checkpoint is intact: lower train.lr, set train.clip, or use precision fp32"
        )
    files = {
        name: save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        for name, tensors in checkpoint.tensors.items()
    }
    return Packed(checkpoint.images, checkpoint.numbers, files)


def write_checkpoint(folder: Path, packed: Packed) -> Path:
    """Write `folder`/<images>, whole or not at all. SnrkitError when the disk is full; older checkpoints stay."""
    path = folder / f"{packed.images:09d}"
    intact = "older checkpoints are intact"
    remedies = (f"{intact}; {what} and run the command again" for what in ("free space", "see to its permissions"))
    with (
        disk_errors(f"saving checkpoint {path}", *remedies),
        new_folder(path) as temporary,
    ):
        sums = {}
        for name, content in packed.files.items():
            (temporary / f"{name}.safetensors").write_bytes(content)
            sums[name] = checksum(content)
        write_json(temporary / "state.json", to_json(State(packed.images, packed.numbers, sums)))
    return path


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Both at once."""
    return write_checkpoint(folder, pack_checkpoint(checkpoint))


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first. UnreadableError where the disk does not say which."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _is_number(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # else a training would begin anew
        raise unreadable(folder, error) from None
    return sorted(found, key=lambda path: int(path.name))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 18


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    return next(reversed(list_checkpoints(folder)), None)


def load_checkpoint(path: Path, only: str | None = None) -> Checkpoint:
    """Read a checkpoint, or only one set of its tensors. DamagedError also where it holds what is not finite.

    UnreadableError where the disk does not give it, or it does not fit into memory.
    """
    state = _state(path)
    wanted = state.checksums if only is None else {only: _known(path, state, only)}
    return Checkpoint(state.images, {name: _read(path, name, total) for name, total in wanted.items()}, state.numbers)


def checksum_of(path: Path, name: str) -> str:
    """The checksum of one set of a checkpoint's tensors, which are not read. RunError as load_checkpoint."""
    return _known(path, _state(path), name)


def numbers_of(path: Path) -> Mapping[str, Any]:
    """The plain numbers of a checkpoint, whose tensors are not read. RunError as load_checkpoint."""
    return _state(path).numbers


def sound_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest checkpoint that can be read, and those after it, which cannot."""
    damaged: list[Path] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), damaged
        except DamagedError:
            damaged.append(path)
    return None, damaged


def _known(path: Path, state: State, name: str) -> str:
    if name not in state.checksums:
        raise RunError(f"checkpoint {path} has no weights called '{name}'; it has {', '.join(state.checksums)}.")
    return state.checksums[name]


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"checkpoint {path} {why}; go on from the one before with snrkit train --fall-back, or restore it."
    )


def _state(path: Path) -> State:
    file = path / "state.json"
    if not os.path.lexists(file):
        raise _damaged(path, "is not complete: it has no state.json")
    try:
        content = read_json(file)
    except UnreadableError:
        raise
    except SnrkitError as error:
        raise _damaged(path, f"is damaged: {str(error).removesuffix('.').partition('; ')[0]}") from None
    state = from_json(State, content, file)
    if path.name != f"{state.images:09d}":
        raise _damaged(path, f"says that it is of {state.images} images, which is not its name")
    for name in state.checksums:
        if NAME.fullmatch(name) is None:
            raise _damaged(path, f"holds tensors called {name!r:.40}, which is no name of a file")
    return state


def _read(path: Path, name: str, known: str) -> dict[str, Tensor]:
    file = path / f"{name}.safetensors"
    try:
        check_memory(file)
        if file_checksum(file) != known:
            raise _damaged(path, f"is damaged: the checksum of {file.name} does not fit")
        tensors = load_file(file)
    except SafetensorError:
        raise _damaged(path, f"is damaged: {file.name} is no safetensors") from None
    except FileNotFoundError as error:
        if os.path.lexists(file):  # as safetensors says of a file that it could not open
            raise unreadable(file, error) from None
        raise _damaged(path, f"is damaged: {file.name} is gone") from None
    except NotRegularError:
        raise _damaged(path, f"is damaged: {file.name} is no file") from None
    except OSError as error:
        raise unreadable(file, error) from None
    if wrong := not_finite(tensors):
        raise _damaged(path, f"has weights that are not finite, {wrong} of {file.name} for one")
    return tensors


def prune(folder: Path, keep_last: int, keep_every: int | None) -> None:
    """Delete all but the last `keep_last` checkpoints and those at multiples of `keep_every` images crossed first."""
    paths = list_checkpoints(folder)
    kept, milestone = set(paths[-keep_last:]), 0
    for path in paths:
        reached = int(path.name) // keep_every if keep_every else 0
        if reached > milestone:
            kept.add(path)
            milestone = reached
    for path in paths:
        if path not in kept:
            remove_folder(path)
    remove_leftovers(folder)
