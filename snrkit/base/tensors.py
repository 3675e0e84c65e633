"""Files of tensors that carry a checksum of their content and of what they are of: safetensors with one entry more."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from snrkit.base.distributed import free_memory
from snrkit.base.errors import DamagedError, UnreadableError, missing, unreadable
from snrkit.base.files import checksum, write_bytes
from snrkit.base.regular import read_regular

CHECKSUM = "checksum"
LARGEST = 2**34  # bytes of what is kept beside checkpoints


def tensors_checksum(tensors: Mapping[str, Tensor], of: str) -> str:
    """Of names, shapes, types and values of tensors, and of what they are of."""
    return checksum(of.encode() + b"\0" + save(dict(tensors)))


def values_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of the values of tensors as float32, whatever their names, their order and the format they are held in."""
    plain = (tensor.detach().to("cpu", torch.float32).contiguous() for tensor in tensors.values())
    sums = sorted(checksum(f"{tuple(t.shape)}".encode() + t.numpy().tobytes()) for t in plain)
    return checksum("\n".join(sums).encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], of: str) -> None:
    """Write tensors with their checksum, as write_bytes writes. `of`: what they are of, which a reader must say too."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, {CHECKSUM: tensors_checksum(plain, of)}))


def check_memory(path: Path) -> None:
    """UnreadableError where a file of tensors, however large the model is, is larger than what memory is free."""
    found, free = path.stat().st_size, free_memory(torch.device("cpu"))
    if found > free:
        raise UnreadableError(
            f"{path} has {found:,} bytes, and {free:,.0f} of memory are free; read it where there is more."
        )


def read_tensors(path: Path, of: str) -> dict[str, Tensor]:
    """What write_tensors wrote. DamagedError where it is not that any more, SnrkitError where it is absent.

    UnreadableError where the disk does not give it, or it does not fit into memory.
    """
    try:
        check_memory(path)
        content = read_regular(path, LARGEST)
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        stored = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except FileNotFoundError:
        raise missing("file", path, "run the command that makes it first") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, f"it cannot be read, {error}") from None
    if stored != {CHECKSUM: tensors_checksum(tensors, of)}:
        raise _damaged(path, "its checksum does not fit")
    return tensors


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite; None where there is none. One read a device."""
    places: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        places.setdefault(tensor.device, []).append(name)
    wrong: set[str] = set()
    for names in places.values():
        found = torch.stack([tensors[name].isfinite().all() for name in names]).tolist()
        wrong |= {name for name, finite in zip(names, found, strict=True) if not finite}
    return next((name for name in tensors if name in wrong), None)


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"{path} is damaged or of other things ({why}); delete it and run the same command again.")
