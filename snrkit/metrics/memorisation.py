"""Whether a model repeats its training images: how near samples come to them, beside how near held-out images do."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Memorisation:
    """Distances to the nearest training image, root mean square per pixel in [-1, 1]."""

    samples: float  # median over samples
    held_out: float  # median over held-out images
    nearer: float  # share of (sample, held-out) pairs in which the sample is nearer; 0.5 when alike


@torch.no_grad()
def memorisation(of_samples: Tensor, of_held: Tensor) -> Memorisation:
    """Compare how near samples (n,) and held-out images (m,) come to training images, as `nearest` has it."""
    below = torch.searchsorted(of_held.sort().values, of_samples)
    nearer = 1 - float(below.double().mean()) / len(of_held)
    return Memorisation(float(of_samples.median()), float(of_held.median()), nearer)


def nearest(images: Tensor, train: Iterable[Tensor]) -> Tensor:
    """Distance (n,) of each image to its nearest training image, root mean square per pixel, in float64."""
    flat = images.flatten(1).double()
    best = torch.full((len(flat),), torch.inf, dtype=torch.float64)
    for batch in train:
        rows = batch.flatten(1).double()
        for part in torch.split(torch.arange(len(flat)), 4096):
            best[part] = torch.minimum(best[part], torch.cdist(flat[part], rows).amin(1))
    return best / math.sqrt(flat.shape[1])
