"""Frequency parts of images: orthonormal coordinates, and which part each belongs to.

Both transforms are orthonormal and real, so that white noise of variance sigma^2 has variance sigma^2 in every
coordinate and Var[x] = alpha^2 Var[x0] + sigma^2 holds part by part.

    haar    the one-level Haar bands ll, lh, hl, hh (an odd last row or column is left out)
    rings   the Hartley transform, Re - Im of the orthonormal FFT, in rings of equal width of the spatial frequency
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.wavelet import dwt2

RINGS = 8


@dataclass(frozen=True, slots=True)
class View:
    """Coordinates (n, D) of images (n, C, H, W), the part (D,) each belongs to, and the parts' names."""

    coordinates: Callable[[Tensor], Tensor]
    parts: Tensor
    names: tuple[str, ...]

    def shares(self) -> Tensor:
        """(D, G) float64: the product with it averages over each part."""
        found = torch.nn.functional.one_hot(self.parts, len(self.names)).double()
        return found / found.sum(0)


def pixels(shape: Sequence[int]) -> View:
    """All pixels as one part, of images of any shape."""
    return View(lambda x: x.flatten(1), torch.zeros(math.prod(shape), dtype=torch.int64), ("all",))


def haar(shape: tuple[int, int, int]) -> View:
    """The four Haar bands."""
    channels, height, width = shape
    rows, columns = height - height % 2, width - width % 2

    def coordinates(x: Tensor) -> Tensor:
        bands = dwt2(x[..., :rows, :columns])
        return torch.cat([band.flatten(1) for band in (bands.ll, bands.lh, bands.hl, bands.hh)], 1)

    size = channels * rows * columns // 4
    return View(coordinates, torch.arange(4).repeat_interleave(size), ("ll", "lh", "hl", "hh"))


def rings(shape: tuple[int, int, int]) -> View:
    """At most RINGS rings of the distance from frequency 0, in cycles per image; the last takes the corners."""
    channels, height, width = shape
    y = torch.fft.fftfreq(height, 1 / height)
    x = torch.fft.fftfreq(width, 1 / width)
    radius = torch.hypot(y[:, None] / height, x[None, :] / width)  # cycles per pixel, at most sqrt(1/2)
    count = min(RINGS, min(height, width) // 2 + 1)
    ring = (radius * 2 * (count - 1)).round().long().clamp(max=count - 1)

    def coordinates(images: Tensor) -> Tensor:
        return hartley(images).flatten(1)

    return View(coordinates, ring.flatten().repeat(channels), tuple(f"ring-{i}" for i in range(count)))


def hartley(images: Tensor) -> Tensor:
    """The orthonormal Hartley transform of images (..., H, W)."""
    spectrum: Tensor = torch.fft.fft2(images, norm="ortho")
    return spectrum.real - spectrum.imag


def views(shape: tuple[int, int, int]) -> list[View]:
    """All views of images of this shape; those of one pixel a side have no frequencies."""
    return [pixels(shape), haar(shape), rings(shape)] if min(shape[1:]) > 1 else [pixels(shape)]
