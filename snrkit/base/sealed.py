"""Records as JSON that carry a checksum of their content, and are read back only where it fits.

The checksum is the last key, `checksum`, over the other keys in their order. It finds damage and edits; it is no
signature: what a stranger wrote may carry a right one, so that types are still checked (base/records.py).
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from snrkit.base.errors import DamagedError, SnrkitError, missing, unreadable
from snrkit.base.files import checksum, write_text
from snrkit.base.regular import read_regular

LARGEST = 2**25  # bytes of a record
LARGEST_LINES = 2**30  # bytes of a file that grows
CHECKSUM = "checksum"
AGAIN = "delete it and run the command that makes it"  # what to do about a file of ours that does not fit
CHANGED = "it was damaged, or changed after snrkit wrote it (its checksum does not fit)"


def finite(content: Any) -> Any:
    """`content` with every float that JSON cannot hold (the logsnr of pure noise is -inf) replaced by None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    return [finite(value) for value in content] if isinstance(content, list | tuple) else content


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON will give it back, its checksum last; floats that JSON cannot hold are None."""
    plain: dict[str, Any] = json.loads(json.dumps(finite(content), allow_nan=False))
    return {**plain, CHECKSUM: _seal(plain)}


def _seal(plain: Mapping[str, Any]) -> str:
    return checksum(json.dumps(plain, separators=(",", ":"), allow_nan=False).encode())


class UnsealedError(ValueError):
    """JSON that is none of ours."""


def unsealed(text: str | bytes) -> dict[str, Any]:
    """The record of a text that `sealed` made, without its checksum. ValueError says why it is not that."""
    try:
        content = json.loads(text, parse_constant=_constant)
        if not isinstance(content, dict) or CHECKSUM not in content:
            raise UnsealedError("it is no record with a checksum, as this version writes them")
        if content.pop(CHECKSUM) != _seal(content):
            raise ValueError(CHANGED)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON ({error})") from None
    except RecursionError:
        raise ValueError("it is nested more deeply than any record") from None
    return content


def _constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which no record does")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A record, sealed, as write_text writes; finite floats round-trip, others become null."""
    write_text(path, json.dumps(sealed(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path, largest: int = LARGEST, remedy: str = AGAIN) -> dict[str, Any]:
    """The record that a file of ours holds; `remedy`: what errors say is to be done where it holds none.

    DamagedError where it was damaged or changed, UnreadableError where the disk does not give it, SnrkitError where it
    is absent or another's.
    """
    try:
        return unsealed(_content(path, largest))
    except FileNotFoundError:
        raise missing("file", path, "run the command that makes it first") from None
    except ValueError as error:
        kind = SnrkitError if isinstance(error, UnsealedError) else DamagedError
        raise kind(f"{path} cannot be believed: {error}; {remedy}.") from None


def line_of(content: Mapping[str, Any]) -> str:
    """A record as one sealed line of a file that grows."""
    return json.dumps(sealed(content), allow_nan=False) + "\n"


def append_line(path: Path, content: Mapping[str, Any], sync: bool = False) -> None:
    """Add a sealed line; `sync` also survives a loss of power. OSError where the disk fails."""
    with path.open("a") as file:
        file.write(line_of(content))
        if sync:
            file.flush()
            os.fsync(file.fileno())


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A file of sealed lines anew, as write_text writes."""
    write_text(path, "".join(map(line_of, records)))


def read_lines(path: Path, most: int | None = None) -> tuple[list[dict[str, Any]], bool]:
    """(The records of a file that grows, or its first `most`; whether its last line is torn, as a kill leaves
    it, and was left out).

    Nothing where the file is absent. SnrkitError names a line that is damaged.
    """
    try:
        content = _content(path, LARGEST_LINES)
    except FileNotFoundError:
        return [], False
    records: list[dict[str, Any]] = []
    *lines, rest = content.split(b"\n")
    if most is not None and len(lines) >= most:  # what comes later is nobody's
        lines, rest = lines[:most], b""
    for number, line in enumerate(lines, 1):
        try:
            records.append(unsealed(line))
        except ValueError as error:
            raise DamagedError(
                f"line {number} of {path} cannot be believed: {error}; restore the file, or delete it to go on without."
            ) from None
    if not rest:
        return records, False
    with contextlib.suppress(ValueError):  # whole but for its end
        return [*records, unsealed(rest)], False
    return records, True


def _content(path: Path, largest: int) -> bytes:
    try:
        return read_regular(path, largest)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from None


def sync_lines(path: Path) -> None:
    """Have what was appended outlast a loss of power, before another file says that it is there."""
    if path.exists():
        with path.open("ab") as file:
            os.fsync(file.fileno())
