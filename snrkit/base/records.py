"""Records: frozen dataclasses that lie in files as JSON, so that who reads a file reads fields.

    to_json(record)                     plain data
    from_json(kind, content, where)     the record again
    read_record(kind, path)             from a file

A field is a key. One without a default must be there, and no other key may be. JSON has neither infinity nor NaN: such
a float is written as null, and null is NaN where the type says float, None where it says `float | None`. The keys of a
field `name: kind = field(metadata=FLAT)` lie beside the record's own: those of a mapping, or those of another record,
all of them or, where it is None, none. Types are plain ones (bool, int, float, str, Literal, Any), records, T | None,
and list[T], tuple[T, ...], Sequence[T], Mapping[str, T] of them. What else must hold of a record, its `__post_init__`
checks, by ValueError.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from snrkit.base.errors import SnrkitError
from snrkit.base.sealed import AGAIN, read_json

T = TypeVar("T")
FLAT = {"flat": True}


def to_json(record: Any) -> Any:
    """A record, and what it is made of, as JSON can hold it."""
    if isinstance(record, float):
        return record if math.isfinite(record) else None
    if isinstance(record, Mapping):
        return {key: to_json(value) for key, value in record.items()}
    if isinstance(record, Sequence) and not isinstance(record, str):
        return [to_json(value) for value in record]
    if not is_dataclass(record):
        return record
    content: dict[str, Any] = {}
    for entry in fields(record):
        value = to_json(getattr(record, entry.name))
        part = (value or {}) if _is_flat(entry) else {entry.name: value}
        assert not part.keys() & content.keys(), f"{entry.name}: a key stands twice"
        content |= part
    return content


def from_json(kind: type[T], content: object, where: Path | str, remedy: str = AGAIN) -> T:
    """The record of plain data. SnrkitError names `where`, the first key that does not fit, and the remedy."""
    try:
        return cast(T, _value(kind, content, f"{where}: "))
    except _Misfit as misfit:
        raise SnrkitError(f"{misfit}; the file is damaged or of another version: {remedy}.") from None


def read_record(kind: type[T], path: Path, remedy: str = AGAIN) -> T:
    """The record that a file holds. SnrkitError, with the remedy, when it is absent, damaged, or holds another."""
    return from_json(kind, read_json(path, remedy=remedy), path, remedy)


class _Misfit(Exception):  # noqa: N818 - from_json makes an error of it
    """What does not fit, and where."""


def _value(kind: Any, content: Any, at: str) -> Any:
    """Content as a type. `at`: the file and the keys that lead here."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and content in arguments) or (type(content) is kind and kind is not float):
        return content
    if kind is float and (content is None or type(content) in (int, float)):
        return math.nan if content is None else float(content)
    if is_dataclass(kind) and isinstance(content, Mapping):
        return _record(kind, content, at)
    if origin in (Union, UnionType) and NoneType in arguments:
        return None if content is None else _value(_without_none(kind), content, at)
    if origin in (list, tuple, Sequence) and isinstance(content, list):
        items = [_value(arguments[0], entry, f"{at}{place}.") for place, entry in enumerate(content)]
        return items if origin is list else tuple(items)
    if origin in (dict, Mapping) and isinstance(content, Mapping):
        return {key: _value(arguments[1], entry, f"{at}{key}.") for key, entry in content.items()}
    raise _misfit(at, f"is {content!r:.40}")


def _record(kind: Any, content: Mapping[str, Any], at: str) -> Any:
    types, found = _types(kind), {}
    own = {entry.name for entry in fields(kind) if not _is_flat(entry)}
    others = {key: value for key, value in content.items() if key not in own}
    for entry in fields(kind):
        if _is_flat(entry):
            optional = NoneType in get_args(types[entry.name])
            found[entry.name] = _value(types[entry.name], None if optional and not others else others, at)
            others = {}
        elif entry.name in content:
            found[entry.name] = _value(types[entry.name], content[entry.name], f"{at}{entry.name}.")
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise _misfit(f"{at}{entry.name}.", "is missing")
    if others:
        raise _misfit(f"{at}{next(iter(others))}.", "is unknown")
    try:
        return kind(**found)
    except ValueError as error:  # what a record's own __post_init__ says
        raise _misfit(at, str(error)) from None


@cache
def _types(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _is_flat(entry: Field[Any]) -> bool:
    return bool(entry.metadata.get("flat"))


def _without_none(kind: Any) -> Any:
    (inner,) = (argument for argument in get_args(kind) if argument is not NoneType)
    return inner


def _misfit(at: str, what: str) -> _Misfit:
    return _Misfit(f"{at.removesuffix('.').removesuffix(': ')} {what}")
