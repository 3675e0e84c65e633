"""Text within the width that is there: tables as tables where they fit, else row by row, and sentences.

Columns stand in the order of what matters; those that are empty in all rows are left out. What does not fit beside them
follows in further tables of the same rows, or on a console below WIDE cells, and where a column fits none, every row is
a block of its own, a line for each value. Nothing is cut off: what is longer than a line goes
on in the next one. Widths are those of cells of a terminal, in which some characters take two.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, zip_longest

from rich.cells import cell_len
from rich.console import Console

from snrkit.base.rounding import rounded

EMPTY = ("", "-")  # cells that say nothing
PLAIN_WIDTH = 100  # of what is no terminal, unless COLUMNS says otherwise
GAP = "  "
INDENT = "  "
LEAST_KEYS = 24  # cells for the names of values, or a third of the width, however long values are
MOST_DIGITS = 12
WIDE = 100  # cells, from which on a table that does not fit is divided by columns
HEAD_LINES = 3  # at most, over a column


def width_of(console: Console) -> int:
    """The width of a console in cells: of a terminal its own, else COLUMNS, or PLAIN_WIDTH."""
    if console.is_terminal:
        return console.width
    given = os.environ.get("COLUMNS", "")
    return max(1, int(given)) if given.isdigit() else PLAIN_WIDTH


def digits_of(half: float, otherwise: int = 4) -> int:
    """Digits after the point of a number whose interval is `half` wide on either side: two that are significant."""
    if not math.isfinite(half) or half <= 0:
        return otherwise
    exponent = int(f"{half:.1e}".split("e")[1])
    return min(MOST_DIGITS, max(0, 1 - exponent))


def measured(value: float, low: float | None, high: float | None, signed: bool = False, digits: int = 4) -> str:
    """value [low, high], with the digits that the interval supports; without one, with so many digits; a dash for NaN.

    What rounds to 0 has no sign but that of 0.
    """
    if math.isnan(value):
        return "-"
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return rounded(value, digits, signed)
    supported = digits_of((high - low) / 2, digits)
    least, most = (rounded(bound, supported, signed) for bound in (low, high))
    return f"{rounded(value, supported, signed)} [{least}, {most}]"


def saying(rows: Sequence[Sequence[str]], columns: int) -> list[int]:
    """The first column, and those that say something in some row."""
    return [place for place in range(columns) if place == 0 or any(row[place] not in EMPTY for row in rows)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table, none wider than `width`. The first column names the rows."""
    _, heads, cells, widths = _measured(header, rows)
    parts = _parts(widths, width)
    if parts is None or (len(parts) > 1 and width < WIDE):
        return _one_by_one(heads, cells, width)
    lines: list[str] = []
    for part in parts:
        lines += [""] if lines else []
        lines += _side_by_side(*([each[i] for i in part] for each in (heads, *cells)), widths=[widths[i] for i in part])
    return lines


def abreast(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    """How many of the first columns, those that say nothing included, stand side by side in one table of `width`."""
    kept, _, _, widths = _measured(header, rows)
    ends = accumulate(len(GAP) + wide for wide in widths)
    fit = sum(end - len(GAP) <= width for end in ends)
    return kept[fit] if fit < len(kept) else len(header)


def _measured(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[int], list[str], list[list[str]], list[int]]:
    """(places of the columns that say something, their heads, their cells row by row, their widths)."""
    heads = _told_apart(header)
    kept = saying(rows, len(heads))
    heads = [heads[place] for place in kept]
    cells = [[" ".join(row[place].split()) for place in kept] for row in rows]
    widths = [max([_head_width(head), *(cell_len(row[i]) for row in cells)]) for i, head in enumerate(heads)]
    return kept, heads, cells, widths


def _parts(widths: Sequence[int], width: int) -> list[list[int]] | None:
    """The columns of each table, the first one in all; None where one does not fit beside the first."""
    if any(widths[0] + len(GAP) + wide > width for wide in widths[1:]) or widths[0] > width:
        return None
    parts, taken = [[0]], widths[0]
    for place in range(1, len(widths)):
        taken += len(GAP) + widths[place]
        if taken > width:
            parts.append([0])
            taken = widths[0] + len(GAP) + widths[place]
        parts[-1].append(place)
    return parts


def _told_apart(header: Sequence[str]) -> list[str]:
    """The heads, each once: one that stands several times follows the head of the column before it."""
    often = Counter(header)
    return [f"{header[place - 1]}: {head}" if place and often[head] > 1 else head for place, head in enumerate(header)]


def _head_width(head: str) -> int:
    """The least width at which a head takes HEAD_LINES lines at most, and no word is broken."""
    least = max((cell_len(word) for word in head.split()), default=0)
    while len(list(wrapped(head, max(least, 1)))) > HEAD_LINES:
        least += 1
    return least


def _side_by_side(heads: Sequence[str], *rows: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Heads over as many lines as they need, a rule, and a line for each row; numbers stand at the right."""
    right = [place > 0 and all(_is_number(row[place]) for row in rows) for place in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        parts = [_filled(*each) for each in zip(cells, widths, right, strict=True)]
        return GAP.join(parts).rstrip()

    above = zip_longest(*(list(wrapped(head, wide)) for head, wide in zip(heads, widths, strict=True)), fillvalue="")
    return [*map(line, above), line(["-" * wide for wide in widths]), *map(line, rows)]


def _is_number(text: str) -> bool:
    return text in EMPTY or text.replace(",", "").lstrip("+-").replace(".", "", 1).isdigit()


def _filled(text: str, width: int, right: bool) -> str:
    fill = " " * (width - cell_len(text))
    return fill + text if right else text + fill


def _one_by_one(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A block for each row: what it is called, and below it a line for each of its values that is there."""
    longest = max((cell_len(cell) for row in rows for cell in row[1:]), default=0)
    beside = max(min(LEAST_KEYS, width // 3), width - len(INDENT) - len(GAP) - longest)
    wide = min(max((cell_len(head) for head in heads[1:]), default=0), beside)
    lines: list[str] = []
    for row in rows:
        lines += wrapped(row[0], width)
        for head, cell in zip(heads[1:], row[1:], strict=True):
            lines += [] if cell in EMPTY else _entry(head, cell, wide, width)
    return lines


def _entry(head: str, cell: str, wide: int, width: int) -> Iterator[str]:
    """A value beside its name; both go on in further lines where they are longer than their place."""
    room = width - len(INDENT) - wide - len(GAP)
    if room < max(1, width // 4):  # a very narrow console
        yield from wrapped(f"{head}: {cell}", width)
        return
    for name, value in zip_longest(wrapped(head, wide), wrapped(cell, room), fillvalue=""):
        yield f"{INDENT}{_filled(name, wide, False)}{GAP}{value}".rstrip()


def wrapped(text: str, width: int, whole: bool = False) -> Iterator[str]:
    """The words of a text in lines of `width` cells at most. A longer word is broken; if `whole`, it stands alone."""
    line = ""
    for word in text.split():
        pieces = [word] if whole else list(_pieces(word, width))
        for number, piece in enumerate(pieces):
            if line and (number or cell_len(line) + 1 + cell_len(piece) > width):
                yield line
                line = piece
            else:
                line = f"{line} {piece}" if line else piece
    if line:
        yield line


def _pieces(word: str, width: int) -> Iterator[str]:
    """A word in parts of `width` cells at most."""
    if cell_len(word) <= width:
        yield word
        return
    part = ""
    for letter in word:
        if part and cell_len(part + letter) > width:
            yield part
            part = ""
        part += letter
    if part:
        yield part
