"""Reading pickles without running them.

A pickle is a program for a small machine. This is such a machine with no power: it makes plain values, and tensors that
lie in the file; a call stays a record of what would have been called with what. What a file may name is a short list;
anything else is refused by its name. Lengths are checked against the file before anything is read, so that a file
cannot ask for more memory than it has bytes, and tensors of a mapped file are read from disk when they are used.

The header and the frame marks of newer protocols change nothing and are passed over.
"""

import mmap
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError

STEPS = 1_000_000  # of the machine, at most; a network of a thousand layers takes some 100,000
LONGEST_INTEGER, LONGEST_NAME = 128, 1024  # bytes
TEXTS = 2**24  # bytes of all texts; published files carry their source, of some 100,000
DEPTH = 8  # dimensions of a tensor
DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
STORED = "torch.storage._load_from_bytes"
KNOWN = {
    PERSISTENT, STORED, "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.Size",
    "torch.device", "collections.OrderedDict", "dnnlib.util.EasyDict", "argparse.Namespace", "builtins.set",
    "__builtin__.set", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray",
    *(f"torch.{name}" for name in DTYPES),
    *(f"torch.{dtype}" for dtype in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool")),
}  # fmt: skip
LAYERS = "torch.nn.modules."  # classes under this name are kept as records too


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a file names, and that nobody looks up."""

    full: str


@dataclass(slots=True, eq=False)
class Record:
    """An object that a file would have made: what by, of what, and its state."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Numbers that lie in the file."""

    values: Tensor  # (n,)


MARK = object()


@dataclass(slots=True)
class Allowance:
    """What is left of what one file may take, with all pickles inside it."""

    steps: int = STEPS
    text: int = TEXTS


class Machine:
    """The state of one reading. `persistent` gives a persistent id its meaning; without it there may be none."""

    def __init__(
        self, data: memoryview, left: Allowance | None = None, persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self.data, self.left, self.persistent = data, left or Allowance(), persistent
        self.place, self.stack, self.memo = 0, list[Any](), dict[int, Any]()

    def run(self) -> Any:
        """The value that the program ends with. SnrkitError where it is damaged or names what is not known."""
        while self.left.steps:
            self.left.steps -= 1
            code = self.take(1)[0]
            if code == pickle.STOP[0]:
                return self.pop()
            if code not in ACTIONS:
                raise SnrkitError(f"uses the pickle instruction {bytes([code])!r}, which no checkpoint needs")
            ACTIONS[code](self)
        raise SnrkitError("goes on for longer than any checkpoint")

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if count > len(self.data) - self.place:
            raise SnrkitError("is cut short, or lies about its lengths")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, layout: str) -> Any:
        """The next number."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, count: int) -> str:
        """The next text of `count` bytes."""
        self.left.text -= count
        if self.left.text < 0:
            raise SnrkitError("holds more text than any checkpoint, over 16 MiB")
        try:
            return str(self.take(count), "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise SnrkitError("holds a text that is not UTF-8") from None

    def line(self) -> str:
        """The next text up to a line's end."""
        length = bytes(self.data[self.place : self.place + LONGEST_NAME]).find(b"\n")
        if length < 0:
            raise SnrkitError("holds a name without an end")
        return self.text(length + 1)[:-1]

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the last value."""
        if not self.stack or self.stack[-1] is MARK:
            raise SnrkitError("is no valid pickle: it takes what is not there")
        return self.stack.pop()

    def top(self) -> Any:
        """Look at the last value."""
        self.push(value := self.pop())
        return value

    def since_mark(self) -> list[Any]:
        """Take all values since the last mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is MARK:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise SnrkitError("is no valid pickle: a mark is missing")

    def recall(self, place: int) -> None:
        """Push what was kept."""
        if place not in self.memo:
            raise SnrkitError("is no valid pickle: it recalls what it never kept")
        self.push(self.memo[place])

    def keep(self, place: int) -> None:
        """Keep the last value."""
        self.memo[place] = self.top()

    def name(self, full: str) -> None:
        """Push a name, if it is known."""
        if full not in KNOWN and not full.startswith(LAYERS):
            raise SnrkitError(f"names {full[:80]}, which no checkpoint of this kind needs; nothing of it was run")
        self.push(Name(full))

    def integer(self, count: int) -> None:
        """Push an integer of `count` bytes."""
        if not 0 <= count <= LONGEST_INTEGER:
            raise SnrkitError("holds an integer of over 128 bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def extend(self, values: list[Any]) -> None:
        """Add to the list, set or record below."""
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        else:
            raise SnrkitError("is no valid pickle: it adds to what is no list")

    def fill(self, values: list[Any]) -> None:
        """Add keys and values, in turn, to the mapping below."""
        target = self.top()
        mapping = target.items if isinstance(target, Record) else target
        if not isinstance(mapping, dict) or len(values) % 2:
            raise SnrkitError("is no valid pickle: it fills what is no mapping")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int | float | bool | None):
                raise SnrkitError("has a key that is neither text nor number")
            mapping[key] = value

    def call(self) -> None:
        """Push what a call stands for: a tensor, a mapping, or a record of it."""
        args, what = self.pop(), self.pop()
        if not isinstance(what, Name) or not isinstance(args, tuple):
            raise SnrkitError("is no valid pickle: it calls what is no name")
        if what.full == STORED:
            self.push(stored(args, self))
        else:
            self.push(MADE[what.full](args) if what.full in MADE else Record(what.full, args))

    def build(self) -> None:
        """Give the last object its state."""
        state, target = self.pop(), self.top()
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict | Tensor):
            raise SnrkitError("is no valid pickle: it gives a state to what has none")


def _plain(args: tuple[Any, ...]) -> dict[Any, Any]:
    """An OrderedDict or EasyDict, as empty as files make it."""
    if args:
        raise SnrkitError("makes a mapping of something, as no checkpoint does")
    return {}


def _listed(args: tuple[Any, ...]) -> list[Any]:
    """A set, as a list: its members may be what cannot be in a set."""
    if len(args) != 1 or not isinstance(args[0], list):
        raise SnrkitError("makes a set of something else than a list")
    return args[0]


def _tensor(args: tuple[Any, ...]) -> Tensor:
    """A view of a storage, which must hold it, as large as its shape at most."""
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise SnrkitError("makes a tensor of something else than stored numbers")
    values, offset, size, stride = args[0].values, *args[1:4]
    whole = (offset, *_sizes(size), *_sizes(stride))
    if len(size) != len(stride) or len(size) > DEPTH or not all(isinstance(n, int) and n >= 0 for n in whole):
        raise SnrkitError("holds a tensor with an impossible shape")
    count, last = 1, offset
    for n, step in zip(size, stride, strict=True):
        count, last = count * n, last + max(n - 1, 0) * step
    if count > len(values) or (count and last >= len(values)):
        raise SnrkitError("holds a tensor that is larger than what is stored of it")
    return torch.as_strided(values, size, stride, offset)


def _sizes(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ("not a size",)


def _first(args: tuple[Any, ...]) -> Any:
    """A parameter is its tensor."""
    if not args or not isinstance(args[0], Tensor):
        raise SnrkitError("makes a parameter of something else than a tensor")
    return args[0]


def stored(args: tuple[Any, ...], outer: Machine) -> Storage:
    """A storage, which is a file of torch's older format within the file: four pickles, keys, and the numbers."""
    if len(args) != 1 or not isinstance(args[0], memoryview) or outer.persistent is not None:
        raise SnrkitError("stores numbers in a form that is not known")
    data, found = args[0], list[tuple[torch.dtype, int]]()

    def note(what: Any) -> None:
        dtype, _, count = asked(what)
        found.append((dtype, count))

    for _ in range(5):  # magic number, protocol, machine, the storage itself, the keys
        machine = Machine(data, outer.left, note)
        machine.run()
        data = data[machine.place :]
    if len(found) != 1:
        raise SnrkitError("stores other than one row of numbers at a time")
    return counted(Machine(data), *found[0])


def asked(what: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, key, count) of a persistent id, which is always a storage."""
    usual = isinstance(what, tuple) and len(what) >= 5 and what[0] == "storage" and isinstance(what[1], Name)
    if not usual or not isinstance(what[2], str) or not isinstance(what[4], int) or what[4] < 0:
        raise SnrkitError("holds a persistent id that is no storage")
    dtype = DTYPES.get(what[1].full.removeprefix("torch."))
    if dtype is None:
        raise SnrkitError("stores numbers of a kind that is not known")
    return dtype, what[2], what[4]


def counted(machine: Machine, dtype: torch.dtype, count: int) -> Storage:
    """The next numbers, which lie behind their count."""
    if machine.number("<q") != count:
        raise SnrkitError("lies about how many numbers it stores")
    return numbers(machine.take(count * dtype.itemsize), dtype)


def numbers(content: memoryview, dtype: torch.dtype) -> Storage:
    """Bytes as numbers, which stay where they are."""
    return Storage(torch.frombuffer(content, dtype=dtype) if len(content) else torch.zeros(0, dtype=dtype))


MADE: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _plain,
    "dnnlib.util.EasyDict": _plain,
    "builtins.set": _listed,
    "__builtin__.set": _listed,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
}


def _named(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise SnrkitError("is no valid pickle: a name is no text")
    machine.name(f"{module}.{name}")


def _persistent(machine: Machine) -> None:
    what = machine.pop()
    if machine.persistent is None:
        raise SnrkitError("holds a persistent id, as no checkpoint of this kind does")
    machine.push(machine.persistent(what))


def _newobj_ex(machine: Machine) -> None:
    if machine.pop() != {}:
        raise SnrkitError("makes an object with named arguments, as no checkpoint does")
    machine.call()


def _tuple(machine: Machine, count: int) -> None:
    values = [machine.pop() for _ in range(count)]
    machine.push(tuple(reversed(values)))


def _pair(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.fill([key, value])


def _one(machine: Machine) -> None:
    value = machine.pop()
    machine.extend([value])


def _dict(machine: Machine) -> None:
    values = machine.since_mark()
    machine.push({})
    machine.fill(values)


def _set(machine: Machine) -> None:
    values = machine.since_mark()
    machine.extend(values)


ACTIONS: Mapping[int, Callable[[Machine], None]] = {
    code[0]: action
    for code, action in {
        pickle.PROTO: lambda m: m.take(1),
        pickle.FRAME: lambda m: m.take(8),
        pickle.MARK: lambda m: m.push(MARK),
        pickle.POP: lambda m: m.pop(),
        pickle.POP_MARK: lambda m: m.since_mark(),
        pickle.NONE: lambda m: m.push(None),
        pickle.NEWTRUE: lambda m: m.push(True),
        pickle.NEWFALSE: lambda m: m.push(False),
        pickle.BININT: lambda m: m.push(m.number("<i")),
        pickle.BININT1: lambda m: m.push(m.number("<B")),
        pickle.BININT2: lambda m: m.push(m.number("<H")),
        pickle.LONG1: lambda m: m.integer(m.number("<B")),
        pickle.LONG4: lambda m: m.integer(m.number("<i")),
        pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
        pickle.SHORT_BINUNICODE: lambda m: m.push(m.text(m.number("<B"))),
        pickle.BINUNICODE: lambda m: m.push(m.text(m.number("<I"))),
        pickle.BINUNICODE8: lambda m: m.push(m.text(m.number("<Q"))),
        pickle.SHORT_BINBYTES: lambda m: m.push(m.take(m.number("<B"))),
        pickle.BINBYTES: lambda m: m.push(m.take(m.number("<I"))),
        pickle.BINBYTES8: lambda m: m.push(m.take(m.number("<Q"))),
        pickle.EMPTY_LIST: lambda m: m.push([]),
        pickle.EMPTY_DICT: lambda m: m.push({}),
        pickle.EMPTY_TUPLE: lambda m: m.push(()),
        pickle.EMPTY_SET: lambda m: m.push([]),
        pickle.ADDITEMS: _set,
        pickle.APPEND: _one,
        pickle.APPENDS: lambda m: m.extend(m.since_mark()),
        pickle.SETITEM: _pair,
        pickle.SETITEMS: lambda m: m.fill(m.since_mark()),
        pickle.LIST: lambda m: m.push(m.since_mark()),
        pickle.DICT: _dict,
        pickle.TUPLE: lambda m: m.push(tuple(m.since_mark())),
        pickle.TUPLE1: lambda m: _tuple(m, 1),
        pickle.TUPLE2: lambda m: _tuple(m, 2),
        pickle.TUPLE3: lambda m: _tuple(m, 3),
        pickle.MEMOIZE: lambda m: m.keep(len(m.memo)),
        pickle.BINPUT: lambda m: m.keep(m.number("<B")),
        pickle.LONG_BINPUT: lambda m: m.keep(m.number("<I")),
        pickle.BINGET: lambda m: m.recall(m.number("<B")),
        pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
        pickle.GLOBAL: lambda m: m.name(f"{m.line()}.{m.line()}"),
        pickle.STACK_GLOBAL: _named,
        pickle.REDUCE: lambda m: m.call(),
        pickle.NEWOBJ: lambda m: m.call(),
        pickle.NEWOBJ_EX: _newobj_ex,
        pickle.BUILD: lambda m: m.build(),
        pickle.BINPERSID: _persistent,
    }.items()
}


def mapped(path: Path) -> mmap.mmap:
    """A file's bytes, read from the disk when they are used; what is written to them stays in memory."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise SnrkitError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise SnrkitError(f"{path} is empty.") from None


def read_pickle(path: Path) -> Any:
    """What a pickle file holds: plain values, tensors that lie in the file, and records of objects.

    SnrkitError says what is wrong with the file; nothing of it is run.
    """
    data = mapped(path)
    if data[:1] != pickle.PROTO:
        raise SnrkitError(f"{path} is no pickle.")
    try:
        return Machine(memoryview(data)).run()
    except SnrkitError as error:
        raise SnrkitError(f"{path} {error}.") from None
