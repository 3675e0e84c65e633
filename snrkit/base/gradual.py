"""Work that says how far it has come: a generator that yields that, and returns what it made.

    def reading(files: Sequence[Path]) -> Gradual[list[Tensor]]:
        found = []
        for file in files:
            yield Done("reading images", len(found), len(files))
            found.append(read(file))
        return found

Whoever shows it goes through it; whoever has nothing to show calls `finished(reading(files))`. One such work goes on in
another by `yield from`.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done:
    """How far a part of some work has come. `total` is None where it is not known."""

    what: str  # the part, such as "reading images"; another text is another part
    count: int = 0
    total: int | None = None
    unit: str = "images"  # that are counted
    note: str = ""  # the newest loss or score


Gradual = Generator[Done, None, T]


def finished(work: Gradual[T]) -> T:
    """What it makes, with nothing shown of how far it has come."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            made: T = end.value
            return made
