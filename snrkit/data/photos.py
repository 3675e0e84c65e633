"""Crops of the photographs that scikit-image ships, for studies of natural images without a download."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from snrkit.base.errors import SnrkitError
from snrkit.base.streams import PHOTOS
from snrkit.base.value import Count, Seed
from snrkit.data.dataset import Dataset, Source, memory_dataset

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "camera.png",
    "coins.png",
    "moon.png",
    "grass.png",
    "gravel.png",
    "brick.png",
)


class Photos(Source):
    """Random square crops, each resized to `size`, labelled by the photograph it was cut from.

    Crops of one photograph overlap, so images are correlated: the effective number of images is far below `count`, and
    held-out crops share pixels with training crops. Good for spectra and speed, not for judging generalisation.
    """

    kind: Literal["photos"] = "photos"
    size: int = Field(default=32, ge=4, le=256, description="side to which crops are resized, pixels")
    count: Count = Field(default=4096, description="crops that are made")
    seed: Seed = Field(default=0, description="seed of which photographs are cropped, and where")

    def memory(self) -> int:
        """Of the crops and of their stack, in bytes."""
        return 6 * self.count * self.size**2

    def open(self) -> Dataset:
        """`count` images (3, size, size); the side of each crop is log-uniform between `size` and the photograph's."""
        rng = PHOTOS.open(self.seed, self.size)
        pictures = [_picture(name) for name in PHOTOGRAPHS]
        labels = rng.integers(len(pictures), size=self.count)
        crops = np.stack([_crop(pictures[label], self.size, rng) for label in labels])
        return memory_dataset("photos", torch.from_numpy(crops).permute(0, 3, 1, 2), torch.from_numpy(labels).long())


def whole(name: str, size: int) -> torch.Tensor:
    """The central square of a photograph, resized: uint8 (3, size, size)."""
    picture = _picture(name)
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    small = picture.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)


def _picture(name: str) -> Image.Image:
    try:
        import skimage
    except ImportError:
        raise SnrkitError(
            "data kind photos needs scikit-image; install it with: pip install 'snrkit[photos]'"
        ) from None
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise SnrkitError(f"scikit-image does not ship {name} in this version; install scikit-image 0.24 or newer")
    return Image.open(path, formats=("PNG", "JPEG", "TIFF")).convert("RGB")


def _crop(picture: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    side = round(float(np.exp(rng.uniform(np.log(size), np.log(max(size, min(picture.size)))))))
    left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX, box=box))
