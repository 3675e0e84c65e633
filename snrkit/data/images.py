"""Reading one picture: its format is told by its content, and nothing of it is changed that is not counted.

PNG, JPEG, WebP, BMP and TIFF are read; all else is refused by its name, before a decoder sees it. An image is grey or
RGB of 8 bits: such a file is read as it is. What a file has beside that, or has otherwise, is either of no account and
CONVERTED, as the keys of `changes` say, or refused, as a choice would be made for the user: several frames, pixels that
are transparent, colours of another space, numbers that are no bytes. Colour profiles are not applied.
"""

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from snrkit.base.errors import DataError, SnrkitError, reason_of

LARGEST_IMAGE = 2**27  # bytes of a file; MOST_PIXELS of RGB with 16 bits take less
MOST_PIXELS = 2**24  # of one image
MOST_SCANS = 256  # of a progressive JPEG, each of which goes over all its pixels
HEAD = 1024  # bytes by which a format is known

READ = {
    "PNG": rb"\x89PNG",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
}
NAMED = "PNG, JPEG, WebP, BMP, TIFF"
DECODERS = (
    Image, ImageFile, PngImagePlugin, JpegImagePlugin, MpoImagePlugin, WebPImagePlugin, BmpImagePlugin, TiffImagePlugin,
)  # fmt: skip
OTHERS = {
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "GIF": rb"GIF8",
    "DDS": rb"DDS ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(?:he[ivx].|hevc|mif1|msf1)",
    "a video": rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ",
    "PCX": rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]|\xb1\x68\xde\x3a",
    "PSD": rb"8BPS",
    "ICO": rb"\0\0[\x01\x02]\0[\x01-\xff]\0",
    "ICNS": rb"icns",
    "XBM": rb"\s*(?:/\*[^*]*\*/\s*)?#define\s",
    "XPM": rb"/\* XPM \*/",
    "HTML": rb"(?i)(?:\xef\xbb\xbf)?\s*<(?:!doctype )?html",
    "SVG": rb"(?:\xef\xbb\xbf)?\s*<(?:[^\0]*<)?svg",
    "netpbm": rb"P[1-7Ff]\s",
    "QOI": rb"qoif",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?R",
    "SGI": rb"\x01\xda[\0\x01][\x01\x02]",
    "Sun raster": rb"\x59\xa6\x6a\x95",
    "MNG": rb"\x8aMNG",
    "FITS": rb"SIMPLE  =",
    "HDF5": rb"\x89HDF",
    "an icon of macOS": rb"\0\x05\x16[\0\x07]",
    "a NumPy array": rb"\x93NUMPY",
    "a pointer of Git LFS": rb"version https://git-lfs",
    "a zip": rb"PK\x03\x04",
    "gzip": rb"\x1f\x8b",
    "TGA": rb".[\0\x01][\x01-\x03\x09-\x0b].{13}[\x08\x0f\x10\x18\x20][\0-\x3f]",
    "nothing": rb"\Z",
}

UPRIGHT = "turned upright by their EXIF orientation"
OPAQUE = "rid of an alpha channel that was opaque everywhere"
PALETTE = "with a palette made RGB"
FEWER_BITS = "of fewer than 8 bits spread over 8"
SIXTEEN_BITS = "of 16 bits scaled to 8"
PREVIEWS = "read without the further pictures in their JPEG"
METADATA = "read without metadata that are damaged"
MADE = {1: "made grey of RGB", 3: "made RGB of grey"}  # as data.channels asks

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I;16N")
SPACES = {
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "LAB",
    "HSV": "HSV",
    "I": "32-bit or signed numbers",
    "F": "floating-point numbers",
    "RGBX": "RGB with a channel of no stated meaning",
    "RGBa": "RGB multiplied by its alpha channel",
    "La": "grey multiplied by its alpha channel",
}
EIGHT_BITS = "save it as grey or RGB of 8 bits"
OPAQUELY = "compose it on a colour, and save it without transparency"
BITS, PHOTOMETRIC, SAMPLES = 258, 262, 277  # tags of TIFF
PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
MARKER = re.compile(rb"\xff+([^\0\xd0-\xd7\xff])")


@dataclass(frozen=True, slots=True)
class Found:
    """What an image is found to be: its own `shape` (C, H, W), plain, and what is changed for that, in words."""

    shape: tuple[int, int, int]
    changes: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A picture whose header was read, and fits."""

    picture: Image.Image
    content: bytes
    format: str
    called: str
    changes: set[str]

    def refusal(self, what: str, remedy: str) -> DataError:
        return DataError(f"{self.called} {what}; {remedy}.")


class _Warnings:
    """The module `warnings` as Pillow's own modules see it: what a thread is warned of while it decodes is its own.

    Python's way to catch warnings changes filters and hooks of all threads, and whoever else does so meanwhile, as a
    compiler in the main thread does, puts back what was not there.
    """

    def __init__(self) -> None:
        self.own = threading.local()

    @contextlib.contextmanager
    def heard(self) -> Iterator[list[type[Warning]]]:
        """The categories of what this thread is warned of within the block."""
        heard: list[type[Warning]] = []
        self.own.heard = heard
        try:
            yield heard
        finally:
            self.own.heard = None

    def warn(
        self,
        message: Warning | str,
        category: type[Warning] | None = None,
        stacklevel: int = 1,
        source: object = None,
    ) -> None:
        """As warnings.warn, where this thread decodes nothing."""
        heard = getattr(self.own, "heard", None)
        if heard is None:
            warnings.warn(message, category, stacklevel + 1, source)
        else:
            heard.append(type(message) if isinstance(message, Warning) else category or UserWarning)

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)


WARNINGS = _Warnings()
for _decoder in DECODERS:
    if getattr(_decoder, "warnings", None) is warnings:
        _decoder.warnings = WARNINGS  # type: ignore[attr-defined]


def format_of(content: bytes) -> str | None:
    """The name of the format that some bytes begin like; None for one that is not known."""
    head = content[:HEAD]
    return next((name for name, pattern in (READ | OTHERS).items() if re.match(pattern, head, re.DOTALL)), None)


def read_image(content: bytes, called: str, channels: int | None = None) -> tuple[Tensor, Found]:
    """(The image of a file's content, uint8 (C, H, W), what it was found to be). DataError names it as `called`.

    `channels`: 1 or 3, of which it is made where it has others: grey is repeated, colour made grey by Pillow's L.
    """
    with _opened(content, called) as opened:
        turn = _turn(opened)
        opened.picture.load()
        picture = _plain(opened)
        if turn is not None and opened.format != "TIFF":  # which Pillow itself turns
            picture = picture.transpose(turn)
        own = len(picture.getbands())
        pixels = np.array(picture if channels in (None, own) else picture.convert({1: "L", 3: "RGB"}[channels]))
    found = Found((own, pixels.shape[0], pixels.shape[1]), frozenset(opened.changes))
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1), found


def look_at(content: bytes, called: str) -> Found:
    """What `read_image` would find, from the header alone where no pixel may be transparent."""
    with _opened(content, called) as opened:
        picture = opened.picture
        transparent, turn, (width, height) = _may_be_transparent(picture), _turn(opened), picture.size
    if transparent:
        return read_image(content, called)[1]
    if turn in SIDEWAYS and opened.format != "TIFF":
        width, height = height, width
    return Found((3 if picture.mode in ("RGB", "P") else 1, height, width), frozenset(opened.changes))


@contextlib.contextmanager
def _opened(content: bytes, called: str) -> Iterator[_Opened]:
    """The picture of a file's content. DataError for what is not read, and for whatever happens within the block."""
    found = format_of(content)
    if found not in READ:
        if found is None:
            raise DataError(f"{called} is not a readable image (none of {NAMED}); remove it or copy it again.")
        raise DataError(f"{called} holds {found}, not an image that is read ({NAMED}); convert it, or remove it.")
    changes: set[str] = set()
    try:
        with WARNINGS.heard() as heard, Image.open(io.BytesIO(content), formats=(found,)) as picture:
            opened = _Opened(picture, content, found, called, changes)
            _check_header(opened)
            yield opened
        if any(issubclass(category, UserWarning) for category in heard):
            changes.add(METADATA)
    except SnrkitError:
        raise
    except Exception as error:  # decoders raise whatever they like
        reason = reason_of(error) or type(error).__name__
        raise DataError(f"{called} is not a readable image ({reason}); remove it or copy it again.") from None


def _check_header(opened: _Opened) -> None:
    """Refuse what is not read, and note what will be changed."""
    picture, changes, mode = opened.picture, opened.changes, opened.picture.mode
    if not 0 < picture.width * picture.height <= MOST_PIXELS:
        raise ValueError(f"{picture.width}x{picture.height} pixels are none, or more than {MOST_PIXELS:,}")
    if opened.format == "JPEG" and _scans(opened.content) > MOST_SCANS:
        raise ValueError(f"it has more than {MOST_SCANS} scans")
    if getattr(picture, "is_animated", False) and opened.format != "JPEG":
        raise opened.refusal("holds several frames", "save each as a file of its own")
    if mode not in MODES:
        raise opened.refusal(f"holds {SPACES.get(mode, f'a mode {mode}')}, not grey or RGB", EIGHT_BITS)
    if isinstance(picture, TiffImageFile) and picture.tag_v2.get(SAMPLES, 1) != len(picture.getbands()):
        raise opened.refusal(f"holds {picture.tag_v2.get(SAMPLES)} channels", EIGHT_BITS)
    bits = _bits(opened)
    if bits not in (1, 2, 4, 5, 8, 16):
        raise opened.refusal(f"holds numbers of {bits} bits", EIGHT_BITS)
    if picture.format == "MPO":
        changes.add(PREVIEWS)
    if mode in ("P", "PA"):
        changes.add(PALETTE)
    elif bits != 8:
        changes.add(SIXTEEN_BITS if bits == 16 else FEWER_BITS)


def _bits(opened: _Opened) -> int:
    """Of a channel, or of an index into the palette."""
    picture, content = opened.picture, opened.content
    if picture.mode == "1":
        return 1
    if opened.format == "PNG":
        if content[12:16] != b"IHDR":
            raise ValueError("it does not begin with its header")
        return content[24]
    if isinstance(picture, TiffImageFile):
        bits = int(max(picture.tag_v2.get(BITS, (8,))))
        if bits == 16 and picture.tag_v2.get(PHOTOMETRIC) == 0:
            raise opened.refusal("counts from white to black in 16 bits", EIGHT_BITS)  # Pillow would not turn it over
        return bits
    return 5 if opened.format == "BMP" and content[28:30] == b"\x10\0" else 8


def _scans(content: bytes) -> int:
    """How often the first picture of a JPEG goes over its pixels."""
    at, scans = 2, 0
    while (marker := MARKER.search(content, at)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return scans


def _turn(opened: _Opened) -> Image.Transpose | None:
    """How the image is to be turned, as its EXIF says. Damaged EXIF is passed over, and noted."""
    if opened.format == "PNG":
        if not any(mark in opened.content for mark in PNG_EXIF):
            return None
        opened.picture.load()  # it may stand behind the pixels
    try:
        said = opened.picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # decoders raise whatever they like
        opened.changes.add(METADATA)
        return None
    turn = TURNS.get(said) if isinstance(said, int) else None
    if turn is not None:
        opened.changes.add(UPRIGHT)
    return turn


def _may_be_transparent(picture: Image.Image) -> bool:
    return picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info


def _plain(opened: _Opened) -> Image.Image:
    """The picture as L or RGB."""
    picture = _opaque(opened) if _may_be_transparent(opened.picture) else opened.picture
    if picture.mode.startswith("I;16"):  # Pillow would clip it
        return Image.fromarray((np.asarray(picture).astype(np.uint16) // 257).astype(np.uint8))
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB" if picture.mode == "P" else "L")


def _opaque(opened: _Opened) -> Image.Image:
    """The picture without its alpha channel, or the colour that stands for none. DataError where these are used."""
    picture, content = opened.picture, opened.content
    if picture.mode not in ("P", "PA", "LA", "RGBA") and _bits(opened) != 8:
        raise opened.refusal("names a colour as transparent", OPAQUELY)
    with_alpha = picture.convert("LA" if picture.mode in ("L", "LA") else "RGBA")
    if with_alpha.getchannel("A").getextrema()[0] != 255:
        raise opened.refusal("has transparent pixels", OPAQUELY)
    opened.changes.add(OPAQUE)
    wide_grey = opened.format == "PNG" and content[24:26] == b"\x10\x04"  # which Pillow reads as RGBA
    return with_alpha.getchannel(0) if wide_grey or with_alpha.mode == "LA" else with_alpha.convert("RGB")
