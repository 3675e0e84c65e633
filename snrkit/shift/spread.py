"""How far images lie from their mean, image by image: all that their variance under any weights needs.

Deviations are from the mean of all images whatever the weights, and the variance of that mean is added back, estimated
from the spread of whole groups: so a variance is unbiased, with repeated images too, and resamples centre on it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.frequency import View
from snrkit.base.transfer import send

AT_ONCE, MOST = 2**20, 1024  # numbers of images, and images, that are taken to float64 at a time


@dataclass(frozen=True, slots=True)
class Deviations:
    """Squared deviations of n images, averaged over the coordinates of each of G parts."""

    squares: Tensor  # (..., n, G) float64
    of_mean: Tensor  # (..., G) the variance of the mean

    def variance(self, weights: Tensor) -> Tensor:
        """(..., 1 + R, G) under each row of weights (1 + R, n), which sum to 1."""
        return weights @ self.squares + self.of_mean[..., None, :]


def deviations(images: Tensor, groups: Tensor, views: Sequence[View]) -> Deviations:
    """Those of images (n, C, H, W), for the parts of all views in turn. `groups` (n,): what is resampled together.

    Images are taken to float64 and transformed on their own device, a few at a time; the result is on the CPU.
    """
    shares = [send(view.shares(), images.device) for view in views]
    count, parts = len(images), sum(share.shape[1] for share in shares)
    squares = torch.zeros(count, parts, dtype=torch.float64, device=images.device)
    of_mean = torch.zeros(parts, dtype=torch.float64, device=images.device)
    mean = mean_of(images)
    for rows in blocks(groups, at_once(images.shape[1:])) if views else ():
        chosen = send(rows, images.device)
        centred = images[chosen].double() - mean
        kinds, place = torch.unique(groups[rows], return_inverse=True)
        found, sums = [], []
        for view, share in zip(views, shares, strict=True):
            coordinates = view.coordinates(centred)
            found.append(coordinates.square() @ share)
            if len(kinds) < len(rows):
                coordinates = torch.zeros_like(coordinates[: len(kinds)]).index_add_(
                    0, send(place, images.device), coordinates
                )
            sums.append((coordinates / count).square().sum(0) @ share)
        squares[chosen] = torch.cat(found, 1)
        of_mean += torch.cat(sums)
    different = len(torch.unique(groups))
    return Deviations(squares.cpu(), of_mean.cpu() * different / max(1, different - 1))


def variance(images: Tensor, groups: Tensor, weights: Tensor, view: View) -> Tensor:
    """Variance over images (n, *), averaged over each part of a view, under rows of weights (1 + R, n): (1 + R, G)."""
    return deviations(images, groups, [view]).variance(weights)


def at_once(shape: Sequence[int]) -> int:
    """How many images of a shape are taken to float64 at a time."""
    return min(MOST, max(1, AT_ONCE // math.prod(shape)))


def mean_of(images: Tensor) -> Tensor:
    """The mean (*) of images (n, *), float64."""
    total = torch.zeros_like(images[0], dtype=torch.float64)
    for part in torch.split(images, at_once(images.shape[1:])):
        total += part.double().sum(0)
    return total / len(images)


def blocks(groups: Tensor, most: int) -> Iterator[Tensor]:
    """Indices of all samples in runs of at most `most` or, where that is fewer than a group has, of one group."""
    _, counts = torch.unique(groups, return_counts=True)
    sizes: list[int] = []
    for count in counts.tolist():
        if sizes and sizes[-1] + count <= most:
            sizes[-1] += count
        else:
            sizes.append(count)
    yield from torch.split(groups.argsort(stable=True), sizes)
