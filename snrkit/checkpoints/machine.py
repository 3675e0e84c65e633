"""Running pickles that may be hostile: they have no effect, they come to an end, and they take little memory.

A pickle is a program for a small machine, which calls whatever the file names. Python's own machine (pickle.Unpickler)
runs it here, but a name stands for what the caller says it means, and everything that a program makes is plain or
inert: a call stays a record of what would have been called with what.

A hostile program could still last for hours and fill the memory. It has no loops, so it is read through before it runs:
its instructions are counted, its arguments weighed, and its lengths checked against the file. Instructions whose cost
cannot be seen in this way are replaced. Mappings are made as `Plain`, which checks a key before it is hashed (hashing a
tuple of two tuples of two tuples, sixty deep, takes years), sets are made as lists, and byte strings stay in the file.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

from snrkit.base.errors import SnrkitError, reason_of

STEPS = 1_000_000  # instructions of a file, at most; a network of a thousand layers takes some 100,000
COPIED = 2**24  # bytes of their arguments, at most; published files carry their source, of some 100,000
COST = 128  # bytes that a call or a byte string counts for: a record or tensor, and a view of the file
LONGEST_INTEGER = 128  # bytes
LONGEST_NAME, LONGEST_KEY = 128, 1024  # letters
MOST_ARGUMENTS = 16  # of a call
USED = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE
    BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 EMPTY_LIST APPEND APPENDS EMPTY_SET ADDITEMS EMPTY_TUPLE TUPLE TUPLE1
    TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE
    NEWOBJ BUILD BINPERSID
"""  # instructions of files of protocols 2 to 5
SIZES = {
    op.code.encode("latin-1"): op.arg.n if op.arg else 0 for op in pickletools.opcodes if op.name in USED.split()
}  # bytes of an instruction's argument; negative where the argument itself says them
LENGTHS = {  # bytes of the length that such an argument begins with
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
BYTES, CALLS = (pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8), (pickle.REDUCE, pickle.NEWOBJ)
MAPPING = "collections.OrderedDict"  # which `empty` is made for
REPLACED = {
    pickle.PROTO: b"",
    pickle.FRAME: b"",
    pickle.EMPTY_DICT: b"ccollections\nOrderedDict\n)R",
    pickle.EMPTY_SET: pickle.EMPTY_LIST,
    pickle.ADDITEMS: pickle.APPENDS,
    pickle.NEWOBJ: pickle.REDUCE,
}
Meaning = Callable[[str], Callable[..., Any] | None]  # from a name to what its calls make; None makes records of them


class Inert:
    """A value that a program can hand on and cannot change: a state that it is given is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(slots=True, eq=False)
class Record(Inert):
    """An object that a file would have made: what by, of what, and its state."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


@dataclass(slots=True, eq=False)
class Name(Inert):
    """Something that a file names, and that nobody looks up."""

    full: str
    made: Callable[..., Any] | None

    def __call__(self, *args: Any) -> Any:
        if len(args) > MOST_ARGUMENTS:  # every call has a copy of them
            raise SnrkitError("makes something of more arguments than any checkpoint")
        return Record(self.full, args) if self.made is None else self.made(*args)


@dataclass(slots=True, eq=False)
class Held(Inert):
    """Bytes or a tensor in the file. A program cannot write to them while they are wrapped."""

    content: Any


class Plain(Inert, dict[Any, Any]):
    """A mapping. No instruction reads what lies in one, so bytes and tensors lie there unwrapped."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if not _is_key(key):
            raise SnrkitError("has a key that is neither a name nor a usual number")
        super().__setitem__(key, value.content if isinstance(value, Held) else value)


def _is_key(key: Any) -> bool:
    """Whether a key is fast to hash and compare, shares its hash with few others, and can be shown in a message."""
    if isinstance(key, str):
        return len(key) <= LONGEST_KEY and key.isprintable()
    return key is None or isinstance(key, float) or (isinstance(key, int) and key.bit_length() <= 64)


def empty(*args: Any) -> Plain:
    """The mapping that a call of any kind of dict makes; files fill it afterwards."""
    if args:
        raise SnrkitError("makes a mapping of something, as no checkpoint does")
    return Plain()


@dataclass(slots=True)
class Allowance:
    """What one file may still take, with all programs inside it."""

    steps: int = STEPS
    copied: int = COPIED

    def take(self, copied: int) -> None:
        """Subtract one instruction and some bytes; SnrkitError where nothing is left."""
        self.steps, self.copied = self.steps - 1, self.copied - copied
        if self.steps < 0:
            raise SnrkitError("goes on for longer than any checkpoint")
        if self.copied < 0:
            raise SnrkitError("holds more text than any checkpoint, over 16 MiB")


@dataclass(frozen=True, slots=True)
class Program:
    """A pickle that was read through, with its costly instructions replaced."""

    code: bytes
    held: tuple[Held, ...]  # its byte strings, to which the code refers by number

    def run(self, meaning: Meaning, persistent: Callable[[Any], Any] | None = None) -> Any:
        """The value that the program ends with; SnrkitError where it is no valid program.

        `persistent` makes something of persistent ids; without it there may be none.
        """
        try:
            found = _Machine(self, meaning, persistent).load()
        except (pickle.UnpicklingError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise SnrkitError(f"is no valid pickle ({reason_of(error)})") from None
        return found.content if isinstance(found, Held) else found


class _Machine(pickle.Unpickler):
    def __init__(self, program: Program, meaning: Meaning, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(BytesIO(program.code))
        self.held, self.persistent = program.held, persistent
        self.named = cache(lambda full: Name(full, empty if full == MAPPING else meaning(full)))

    def find_class(self, module: str, name: str) -> Name:
        return self.named(f"{module}.{name}")

    def persistent_load(self, what: Any) -> Any:
        if isinstance(what, int):
            return self.held[what]
        if self.persistent is None:
            raise SnrkitError("holds a persistent id, as no checkpoint of this kind does")
        return self.persistent(what)


def program(data: memoryview, left: Allowance) -> tuple[Program, memoryview]:
    """(the pickle that `data` begins with, the data after it). SnrkitError where it is damaged or takes too much."""
    code, held, last, place = BytesIO(), list[Held](), b"", 0
    while last != pickle.STOP:
        last = bytes(data[place : place + 1])
        begin, end = _argument(last, data, place + 1)
        left.take(COST if last in BYTES or last in CALLS else end - begin)
        if last in BYTES:
            code.write(pickle.BININT + struct.pack("<i", len(held)) + pickle.BINPERSID)
            held.append(Held(data[begin:end]))
        else:
            code.write(REPLACED.get(last, data[place:end]))
        place = end
    return Program(code.getvalue(), tuple(held)), data[place:]


def _argument(code: bytes, data: memoryview, begin: int) -> tuple[int, int]:
    """Where the argument of an instruction begins and ends; `begin` is where its length or itself begins."""
    if code and code not in SIZES:
        raise SnrkitError(f"uses the pickle instruction {code!r}, which no checkpoint needs")
    size = SIZES.get(code, 1)
    if size in LENGTHS:
        start, begin = begin, begin + LENGTHS[size]
        size = int.from_bytes(data[start:begin], "little")
    elif size == pickletools.UP_TO_NEWLINE:  # a name, of two lines
        lines = bytes(data[begin : begin + 2 * LONGEST_NAME]).split(b"\n", 2)
        size = len(lines[0]) + len(lines[1]) + 2 if len(lines) > 2 else len(data)
    if begin + size > len(data):
        raise SnrkitError("is cut short, or lies about its lengths")
    if code == pickle.LONG1 and size > LONGEST_INTEGER:
        raise SnrkitError(f"holds an integer of over {LONGEST_INTEGER} bytes")
    if code == pickle.LONG_BINPUT and int.from_bytes(data[begin : begin + size], "little") >= STEPS:
        raise SnrkitError("keeps more values than any checkpoint")
    return begin, begin + size
