"""Our own checkpoints: a folder of safetensors and one JSON, written under another name and renamed when complete.

checkpoints/000120000/     named after the images seen
    network.safetensors    the raw weights
    ema-50000.safetensors  one file per average
    optimizer.safetensors  moments by parameter name
    state.json             step, images, plain numbers of the training state, and a checksum of each file
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from snrkit.base.errors import RunError
from snrkit.base.files import checksum, disk_errors, new_folder, remove_leftovers


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds: named sets of tensors, and plain numbers."""

    images: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    numbers: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/<images>, whole or not at all. SnrkitError when the disk is full; older checkpoints stay."""
    path = folder / f"{checkpoint.images:09d}"
    with (
        disk_errors(f"saving checkpoint {path}", "older checkpoints are intact; free space and run the command again"),
        new_folder(path) as temporary,
    ):
        sums = {}
        for name, tensors in checkpoint.tensors.items():
            content = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            (temporary / f"{name}.safetensors").write_bytes(content)
            sums[name] = checksum(content)
        state = {"images": checkpoint.images, "numbers": dict(checkpoint.numbers), "checksums": sums}
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
        if path.exists():
            shutil.rmtree(path)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((p for p in folder.glob("[0-9]*") if p.name.isdigit() and p.is_dir()), key=lambda p: int(p.name))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    return next(reversed(list_checkpoints(folder)), None)


def load_checkpoint(path: Path, only: str | None = None) -> Checkpoint:
    """Read a checkpoint, or only one set of its tensors. RunError when it is damaged."""
    images, numbers, sums = _state(path)
    wanted = sums if only is None else {only: _known(path, sums, only)}
    tensors = {name: _read(path / f"{name}.safetensors", total, _remedy(path)) for name, total in wanted.items()}
    return Checkpoint(images, tensors, numbers)


def checksum_of(path: Path, name: str) -> str:
    """The checksum of one set of a checkpoint's tensors, which are not read. RunError as load_checkpoint."""
    return _known(path, _state(path)[2], name)


def _known(path: Path, sums: Mapping[str, str], name: str) -> str:
    if name not in sums:
        raise RunError(f"checkpoint {path} has no weights called '{name}'; it has {', '.join(sums)}.")
    return sums[name]


def _remedy(path: Path) -> str:
    return f"delete {path} to go on from the checkpoint before it"


def _state(path: Path) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(images, numbers, checksums) of a checkpoint."""
    remedy = _remedy(path)
    try:
        state = json.loads((path / "state.json").read_text())
        return int(state["images"]), dict(state["numbers"]), dict(state["checksums"])
    except FileNotFoundError:
        raise RunError(f"{path} is not a complete checkpoint (it has no state.json); {remedy}.") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"checkpoint {path} is damaged (state.json cannot be read); {remedy}.") from None


def _read(path: Path, known: str, remedy: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
        if checksum(content) != known:
            raise RunError(f"checkpoint file {path} is damaged (its checksum does not fit); {remedy}.")
        return load_tensors(content)
    except (FileNotFoundError, SafetensorError):
        raise RunError(f"checkpoint file {path} is missing or damaged; {remedy}.") from None


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
            shutil.rmtree(path)
    remove_leftovers(folder)
