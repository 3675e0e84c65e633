"""What pages are made of, and their form as Markdown; page.py has their form as HTML.

Heading, Paragraph, Table, Picture      the same in both
Verdict, Code, Details                  a paragraph, an indented text, a section; set off, or folded, on a page
Curves, Forest, Front (plots.py), Flip  on a page only: tables and pictures of the same stand beside them
OnPage, InText                          what is in one of the two only
"""

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from snrkit.base.charts import Chart
from snrkit.base.errors import SnrkitError, unreadable
from snrkit.base.regular import read_regular
from snrkit.base.value import Value
from snrkit.metrics.paired import Difference
from snrkit.metrics.scores import Entry, ScoreDefinition
from snrkit.reports.layout import saying
from snrkit.reports.plots import Curves, Forest, Front, Plot, curves_of
from snrkit.reports.records import OverSeeds
from snrkit.sampling.sampler import Sampler

Row = Sequence[str]
LARGEST_PICTURE = 2**28  # bytes


@dataclass(frozen=True, slots=True)
class Heading:
    """The title of a section."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of running text."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """A header and rows of text."""

    header: Row
    rows: Sequence[Row]
    name: str = ""  # for those who do not see it, and of its files
    marked: frozenset[tuple[int, int]] = frozenset()  # (row, column) of cells that stand out on a page


def full(table: Table) -> Table:
    """The table without the columns, but for its first, that say nothing in any row."""
    kept = saying(table.rows, len(table.header))
    marked = frozenset((row, kept.index(column)) for row, column in table.marked if column in kept)
    return Table([table.header[i] for i in kept], [[row[i] for i in kept] for row in table.rows], table.name, marked)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file of the run, with what it shows."""

    path: Path
    caption: str
    samples: bool = False  # small images, to be enlarged without blur


@dataclass(frozen=True, slots=True)
class Verdict:
    """What it all comes down to, in a sentence or two."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied as it is."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Details:
    """A section that a page folds away."""

    summary: str
    blocks: "Sequence[Block]"


@dataclass(frozen=True, slots=True)
class Flip:
    """Pictures of equal size in one place, of which one is shown: the same seeds under every sampler."""

    title: str
    caption: str
    frames: Sequence[Picture]


@dataclass(frozen=True, slots=True)
class OnPage:
    """What stands on a page only."""

    blocks: "Sequence[Block]"


@dataclass(frozen=True, slots=True)
class InText:
    """What stands in Markdown only."""

    blocks: "Sequence[Block]"


Block = Heading | Paragraph | Table | Picture | Verdict | Code | Details | Flip | OnPage | InText | Plot


def short(value: Value, first: str = "kind") -> str:
    """Kind, the field `first`, and settings other than the defaults, numbers to four digits."""
    content, whole = value.model_dump(exclude_defaults=True, exclude={"kind", first}), value.model_dump()
    for key, entry in content.items():
        if isinstance(entry, dict) and "kind" in whole[key]:
            content[key] = {"kind": whole[key]["kind"], **entry}
    rest = ", ".join(f"{key} {plain(entry)}" for key, entry in content.items())
    head = " ".join(str(getattr(value, key)) for key in dict.fromkeys(("kind", first)))  # a property, of some
    return f"{head} ({rest})" if rest else head


def grid_of(sampler: Sampler) -> str:
    """Its grid in short, and whose spectrum the network is told of where that is said."""
    told = "" if sampler.told_spectrum is None else f", told {sampler.told_spectrum}"
    return short(sampler.grid, first="steps") + told


LISTED = 8  # entries at most


def plain(entry: Any) -> str:
    """A setting as text: numbers to four digits, long lists by their length."""
    if isinstance(entry, Mapping):
        return " ".join(plain(v) if key == "kind" else f"{key} {plain(v)}" for key, v in entry.items())
    if isinstance(entry, list | tuple) and len(entry) > LISTED:
        return f"of {len(entry)} numbers"
    return f"{entry:.4g}" if isinstance(entry, float) else str(entry)


def mean_of(entry: Entry | OverSeeds | None, digits: int) -> str:
    """The mean of a score; a dash for none."""
    return "-" if entry is None else f"{entry.mean:.{digits}f}"


def spread(entry: Entry | OverSeeds | None, digits: int) -> str:
    """Mean (min, max) of a score; a dash for none."""
    return "-" if entry is None else f"{entry.mean:.{digits}f} ({entry.min:.{digits}f}, {entry.max:.{digits}f})"


def cell(entry: Entry | None, score: ScoreDefinition) -> str:
    """A score in its column: the mean; of one that was asked for, with its interval where it has one."""
    return with_interval(entry, score.digits) if score.asked and score.interval else mean_of(entry, score.digits)


def leading(entry: Entry | None, score: ScoreDefinition) -> str:
    """A score in the first column, as `score.lead` heads it: with its interval, or with its spread."""
    return with_interval(entry, score.digits) if score.interval else spread(entry, score.digits)


def with_interval(entry: Entry | None, digits: int) -> str:
    """Mean [low, high] of a score; without an interval the mean, and a dash for none."""
    bounds = None if entry is None else entry.interval
    if entry is None or bounds is None or any(map(math.isnan, bounds)):
        return mean_of(entry, digits)
    return f"{entry.mean:.{digits}f} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def interval(found: Difference | None, digits: int) -> str:
    """A difference: mean [low, high]; a dash for none."""
    if found is None or found.low is None or found.high is None:
        return "-" if found is None else f"{found.mean:+.{digits}f}"
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def document(blocks: Sequence[Block], base: Path) -> str:
    """Blocks as a Markdown file, pictures relative to `base`."""
    return "\n\n".join(text for block in blocks if (text := markdown(block, base))) + "\n"


def weights_at(weights: str, images: int) -> str:
    """Which weights, and as of which checkpoint where that is known, as it is not of models from elsewhere."""
    return f"{weights} of the checkpoint at {images:,} images" if images else weights


def markdown(block: Block, base: Path) -> str:
    """A block as Markdown, pictures relative to `base`; empty where it stands on pages only."""
    return "\n\n".join(_markdown(block, base))


def _markdown(block: Block, base: Path) -> Iterator[str]:
    match block:
        case Heading():
            yield f"{'#' * block.level} {_inert(block.text)}"
        case Paragraph() | Verdict():
            yield _inert(block.text)
        case Code():
            yield "\n".join(f"    {line}" for line in block.text.splitlines())
        case Picture():
            caption = _inert(block.caption)
            place = Path(os.path.relpath(block.path, base)).as_posix()
            yield f"![{caption}]({quote(place, safe='/@=+,')})\n*{caption}*"
        case Table():
            lines = [block.header, ["---"] * len(block.header), *block.rows]
            yield "\n".join("| " + " | ".join(_inert(c).replace("|", "\\|") for c in line) + " |" for line in lines)
        case Details():
            yield from (text for part in (Heading(block.summary), *block.blocks) for text in _markdown(part, base))
        case InText():
            yield from (text for part in block.blocks for text in _markdown(part, base))
        case OnPage() | Flip() | Curves() | Forest() | Front():
            return


def _inert(text: str) -> str:
    """One line that Markdown takes for text: no HTML, no link and no picture."""
    found = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return found.replace("](", "]\\(")


def on_page_and_in_text(charts: Sequence[Chart], picture: Picture) -> list[Block]:
    """Charts as figures on a page, and in a text as one picture of them all."""
    return [OnPage([curves_of(chart) for chart in charts]), InText([picture])]


def pictures(paths: Sequence[Path], base: Path, samples: bool = False) -> list[Block]:
    """The pictures that are there, and of those that are damaged what to do. Paths are said relative to `base`."""
    return [
        Picture(path, path.name.removesuffix(".png"), samples)
        if is_picture(path)
        else Paragraph(f"{os.path.relpath(path, base)} is damaged; run the command that draws it again.")
        for path in paths
        if path.exists()
    ]


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG without a damaged part. UnreadableError where the disk does not give it."""
    try:
        content = read_regular(path, LARGEST_PICTURE)
    except SnrkitError:
        return False
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            picture.verify()
    except Image.DecompressionBombError:  # which is large, and not damaged
        return True
    except (OSError, SyntaxError, ValueError):
        return False
    return True
