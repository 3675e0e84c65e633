"""What pages are made of: headings, paragraphs, tables and pictures, as Markdown and as self-contained HTML."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from snrkit.base.errors import SnrkitError, unreadable
from snrkit.base.regular import read_regular
from snrkit.base.value import Value
from snrkit.metrics.paired import Difference
from snrkit.metrics.scores import Entry, ScoreDefinition
from snrkit.reports.records import OverSeeds

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


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file of the run, with what it shows."""

    path: Path
    caption: str
    samples: bool = False  # small images, to be enlarged without blur


Block = Heading | Paragraph | Table | Picture


def short(value: Value, first: str = "kind") -> str:
    """Kind, the field `first`, and settings other than the defaults, numbers to four digits."""
    content, whole = value.model_dump(exclude_defaults=True, exclude={"kind", first}), value.model_dump()
    for key, entry in content.items():
        if isinstance(entry, dict) and "kind" in whole[key]:
            content[key] = {"kind": whole[key]["kind"], **entry}
    rest = ", ".join(f"{key} {_plain(entry)}" for key, entry in content.items())
    head = " ".join(str(whole[key]) for key in dict.fromkeys(("kind", first)))
    return f"{head} ({rest})" if rest else head


LISTED = 20  # entries at most


def _plain(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return " ".join(_plain(v) if key == "kind" else f"{key} {_plain(v)}" for key, v in entry.items())
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


def markdown(block: Block, base: Path) -> str:
    """A block as Markdown, pictures relative to `base`."""
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_inert(block.text)}"
    if isinstance(block, Paragraph):
        return _inert(block.text)
    if isinstance(block, Picture):
        caption = _inert(block.caption)
        return f"![{caption}]({quote(block.path.relative_to(base).as_posix(), safe='/@=+,')})\n*{caption}*"
    lines = [block.header, ["---"] * len(block.header), *block.rows]
    return "\n".join("| " + " | ".join(_inert(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _inert(text: str) -> str:
    """One line that Markdown takes for text: no HTML, no link and no picture."""
    found = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return found.replace("](", "]\\(")


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


def as_html(block: Block) -> str:
    """A block as HTML, pictures embedded."""
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode(read_regular(block.path, LARGEST_PICTURE)).decode()
        caption = html.escape(block.caption)
        kind = " class=samples" if block.samples else ""
        image = f'<img{kind} src="data:image/png;base64,{data}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in block.rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:13px}th,td{border:1px solid #ccc;padding:.3rem .5rem;text-align:left}"
    "th{background:#f4f4f4}.scroll{overflow-x:auto}img{max-width:100%}.samples{image-rendering:pixelated}"
    "figure{display:inline-block;margin:0 1rem 1rem 0}figcaption{font-size:13px;color:#555}"
)


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML page of blocks."""
    body = "\n".join(parts)
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>snrkit: {html.escape(title)}</title>"
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
