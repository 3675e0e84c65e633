"""Blocks as one HTML file that needs no other: a page to send, to read on a phone and to take figures from.

assets/page.html is the one template; it escapes whatever it is given. page.css and page.js go into the file, and the
page's own policy forbids all else: no request is made, and no script runs but the one whose checksum it names. Equal
blocks make equal bytes.
"""

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from snrkit import __version__
from snrkit.base.regular import read_regular
from snrkit.reports.blocks import LARGEST_PICTURE, Block, Details, Flip, Heading, InText, OnPage, Picture, Table
from snrkit.reports.glossary import TERMS, pieces
from snrkit.reports.plots import NARROW, WIDE, Curves, Drawing, Forest, Front, Plot, drawing, named, numbers, outline

if TYPE_CHECKING:
    from jinja2 import Template

ASSETS = Path(__file__).parent / "assets"
LARGE = 160_000  # bytes of a picture, above which it is put into fewer colours
WIDEST = 1600  # pixels of a picture on a page


def page(title: str, blocks: Sequence[Block]) -> str:
    """A whole HTML page of blocks, pictures embedded."""
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = list(_shown(blocks))
    return _template().render(
        title=title,
        blocks=blocks,
        version=__version__,
        style=_trusted(style),
        script=_trusted(script),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{checksum}'; "
        "base-uri 'none'; form-action 'none'",
        contents=[(block, text) for block in shown if (text := _entry(block))],
        **_helpers(shown),
    )


def _helpers(shown: Sequence[Block]) -> dict[str, object]:
    """What the template asks of blocks."""
    plots = [block for block in shown if isinstance(block, Curves | Forest | Front)]
    index = {name: place for place, name in enumerate(dict.fromkeys(n for plot in plots for n in named(plot)))}
    places = {id(block): f"part-{place}" for place, block in enumerate(shown)}
    return {
        "index": index,
        "anchor": lambda block: places[id(block)],
        "drawn": lambda plot: _drawn(plot, index),
        "legend": named,
        "is_dense": lambda plot: isinstance(plot, Curves) and plot.dense,
        "shape": lambda number: outline(number, 13, 6),
        "numbers": lambda plot: Table(*numbers(plot), name=plot.title),
        "pieces": pieces,
        "terms": TERMS,
        "grouped": _grouped,
        "embed": embedded,
    }


def _drawn(plot: Plot, index: Mapping[str, int]) -> tuple[Drawing, Drawing] | None:
    wide, narrow = (drawing(plot, size, index) for size in (WIDE, NARROW))
    return None if wide is None or narrow is None else (wide, narrow)


def _shown(blocks: Sequence[Block]) -> Iterator[Block]:
    """All that a page shows, what holds others before these."""
    for block in blocks:
        if not isinstance(block, InText):
            yield block
        if isinstance(block, Details | OnPage):
            yield from _shown(block.blocks)


def _entry(block: Block) -> str:
    """What the list of sections says of a block, if anything."""
    if isinstance(block, Heading):
        return block.text if block.level > 1 else ""
    return block.summary if isinstance(block, Details) else block.title if isinstance(block, Flip) else ""


def _grouped(blocks: Sequence[Block]) -> list[tuple[bool, list[Block]]]:
    """Runs of figures, which stand side by side, and of what is none."""
    flat = list(_flat(blocks))
    return [(plots, list(run)) for plots, run in groupby(flat, lambda b: isinstance(b, Curves | Forest | Front))]


def _flat(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks of a page, and those of its parts in their places."""
    for block in blocks:
        if isinstance(block, OnPage):
            yield from _flat(block.blocks)
        elif not isinstance(block, InText):
            yield block


def embedded(picture: Picture) -> str:
    """A PNG as a data URL; a large one in fewer pixels or colours, if it is the smaller for that."""
    content = read_regular(picture.path, LARGEST_PICTURE)
    if len(content) > LARGE:
        content = min(content, _smaller(content, picture.samples), key=len)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _smaller(content: bytes, samples: bool) -> bytes:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            image = picture.convert("L" if picture.mode == "L" else "RGB")
    except Image.DecompressionBombError:
        return content
    factor = -(-max(image.size) // WIDEST)
    image = image.reduce(factor) if factor > 1 else image
    out = io.BytesIO()
    (image if samples else image.quantize(64)).save(out, "PNG", optimize=True)
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class _Asset:
    """A file of this package, which markup may hold."""

    text: str

    def __html__(self) -> str:
        return self.text


def _trusted(text: str) -> _Asset:
    assert "</" not in text
    return _Asset(text)


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("page.html")
