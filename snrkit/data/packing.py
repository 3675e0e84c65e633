"""Images of any size as square PNGs of one, for a zip in EDM's layout.

The central square of an image is cropped and resized by Pillow's Lanczos filter, as `--transform=center-crop` of EDM's
dataset_tool does: when it makes an image smaller, its three lobes are widened by the factor, so that nothing is
aliased at any ratio, and edges stay sharper than by a box, the mean over each pixel's area. It works on the bytes as
they are, not on linear light, as all tools of this field do. An image of that size already is not touched.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from snrkit.base.ahead import ahead, threads
from snrkit.base.errors import DataError
from snrkit.data.images import MADE, Found
from snrkit.data.surveys import ImageReader

Crop = Literal["center", "none"]
RESIZED = "resized"
ENLARGED = "enlarged, as they were smaller"


@dataclass(frozen=True, slots=True)
class Packed:
    """One image: the file it becomes, of so many channels, and what was changed of it, in words."""

    content: bytes
    channels: int
    changes: frozenset[str]


def packed(reader: ImageReader, size: int, crop: Crop) -> Iterator[Packed]:
    """Every image, in order, made in threads ahead. SnrkitError for the first that cannot be read or is not square."""

    def pack(index: int) -> Packed:
        pixels, found = reader.one(index)
        picture = _picture(pixels)
        if crop == "none" and picture.width != picture.height:
            raise DataError(
                f"{reader.called(reader.names[index])} is {picture.width}x{picture.height} and not square; crop the "
                "images with --crop center, or make them square."
            )
        made = square(picture, size)
        return Packed(_png(made), len(pixels), found.changes.union(_changes(found, pixels, size)))

    return ahead(pack, range(len(reader.names)), threads())


def _changes(found: Found, pixels: Tensor, size: int) -> Iterator[str]:
    """What packing changes of an image that is read as these pixels (C, H, W)."""
    side = min(pixels.shape[1:])
    if side != size:
        yield RESIZED if side > size else ENLARGED
    if found.shape[0] != len(pixels):
        yield MADE[len(pixels)]


def square(picture: Image.Image, size: int) -> Image.Image:
    """The central square of a picture at size x size."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    cropped = picture.crop((left, top, left + side, top + side))
    return cropped if side == size else cropped.resize((size, size), Image.Resampling.LANCZOS)


def _picture(pixels: Tensor) -> Image.Image:
    """Of uint8 (C, H, W)."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _png(picture: Image.Image) -> bytes:
    """A PNG that is not compressed, which is read fastest; the same bytes for the same pixels."""
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=0)
    return content.getvalue()
