"""How images look beside the data's, without a network: power by frequency ring, and how much brightness varies.

Over-sharpened or fried images have too much power in the high rings, blurred ones too little; a model whose last
training level still shows the image's mean makes images of too nearly the same brightness (Lin et al. 2024).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.frequency import views


@dataclass(frozen=True, slots=True)
class Appearance:
    """Of a set of images in [-1, 1]: mean square in each frequency ring, standard deviation of the mean brightness."""

    power: list[float]
    brightness: float


@dataclass(frozen=True, slots=True)
class Looks:
    """Of a set of images over the data's; 1 is alike."""

    power: list[float]  # from ring 0, the means, to the highest frequencies
    brightness: float


def appearance(batches: Iterable[Tensor], shape: tuple[int, int, int]) -> Appearance:
    """Of images (n, C, H, W), in batches. NaN for the brightness of fewer than two."""
    frequencies = views(shape)[-1]
    squares = torch.zeros(len(frequencies.parts), dtype=torch.float64)
    means: list[Tensor] = []
    for x in batches:
        squares += frequencies.coordinates(x.double()).square().sum(0)
        means.append(x.double().flatten(1).mean(1))
    every = torch.cat(means)
    parts = [squares[frequencies.parts == k].mean() / len(every) for k in range(len(frequencies.names))]
    return Appearance([float(part) for part in parts], float(every.std()))


def looks(made: Appearance, data: Appearance) -> Looks:
    """Power by ring and spread of brightness, each over that of the data."""
    power = [a / b for a, b in zip(made.power, data.power, strict=True)]
    return Looks(power, made.brightness / data.brightness)
