"""Files of safetensors, read without trust: nothing of them is run, and their header is of a possible size."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from snrkit.base.errors import ConfigError, SnrkitError, reason_of
from snrkit.base.regular import open_regular
from snrkit.checkpoints.folders import regular

LARGEST_HEADER = 2**27  # bytes of the header, which is JSON behind 8 bytes of its length


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as one of safetensors does. SnrkitError, OSError where it cannot be read."""
    with open_regular(path) as file:
        begins = file.read(9)
    return int.from_bytes(begins[:8], "little") <= LARGEST_HEADER and begins[8:] == b"{"


def read_safetensors(path: Path, key: str) -> tuple[dict[str, str], Mapping[str, Tensor]]:
    """(what its header says beside its tensors, the tensors by name). ConfigError with the `key` of the file."""
    try:
        with safe_open(path, "pt") as opened:
            said = opened.metadata() or {}
            return said, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{key}: {path} is no whole safetensors file ({reason_of(error)}).") from None


def read_header(path: Path, key: str) -> dict[str, str]:
    """What the header says beside its tensors, which are not read. ConfigError as of read_safetensors."""
    regular(path, key)
    try:
        if is_safetensors(path):
            with safe_open(path, "pt") as opened:
                return opened.metadata() or {}
    except (OSError, SafetensorError, SnrkitError) as error:
        raise ConfigError(f"{key}: {path} is no whole safetensors file ({reason_of(error)}).") from None
    raise ConfigError(f"{key}: {path} is no safetensors file.")
