"""Counter-based randomness: every draw is keyed by what it is for, never by what was drawn before.

The global batch of training step k is cut into slices of fixed size; slice j draws from Philox keyed by
(seed, k, j). Image i of a sampler draws from a stream of its own, label first, then noise. So neither a restart nor the
number of processes changes what is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from snrkit.data.augment import DRAWS
from snrkit.streams import IMAGE, TRAIN, stream


@dataclass(frozen=True, slots=True)
class Draws:
    """All that is random about n training images."""

    positions: Tensor  # (n,) int64, into the training split
    level: Tensor  # (n,) float64 in (0, 1), stratified over the global batch
    label_drop: Tensor  # (n,) float64 in [0, 1)
    noise_drop: Tensor  # (n,) float64 in [0, 1)
    flip: Tensor  # (n,) float64 in [0, 1)
    augment: Tensor  # (n, 14) float64 in [0, 1)
    noise: Tensor  # (n, C, H, W) float32, standard normal


@dataclass(frozen=True, slots=True)
class Plan:
    """The shape of every step's draws."""

    seed: int
    batch: int
    slice: int
    pool: int  # images in the training split
    shape: tuple[int, int, int]

    def draw(self, step: int, slices: Sequence[int]) -> Draws:
        """The draws of the given slices of step `step`, in order."""
        parts = [self._slice(step, index) for index in slices]
        return Draws(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Draws)))

    def _slice(self, step: int, index: int) -> Draws:
        rng, n = stream(TRAIN, self.seed, step, index), self.slice
        positions = rng.integers(self.pool, size=n)
        uniform = torch.from_numpy(rng.random((n, 4 + DRAWS)))
        noise = torch.from_numpy(rng.standard_normal((n, *self.shape), dtype=np.float32))
        place = torch.arange(index * n, (index + 1) * n, dtype=torch.float64)
        level = ((place + uniform[:, 0]) / self.batch).clamp(2.0**-53, 1 - 2.0**-53)
        return Draws(
            torch.from_numpy(positions), level, uniform[:, 1], uniform[:, 2], uniform[:, 3], uniform[:, 4:], noise
        )


class ImageStreams:
    """The random streams of a batch of images to be sampled, one per seed: a label first, then noise."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._streams = [stream(IMAGE, seed) for seed in seeds]
        self._device = device
        self._labels = torch.tensor([rng.random() for rng in self._streams], dtype=torch.float64)

    def labels(self, classes: int) -> Tensor:
        """(B,) int64, uniform over `classes`."""
        return (self._labels * classes).long().to(self._device)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) standard normal, float32 values; the next draw of each stream."""
        draws = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in self._streams])
        return torch.from_numpy(draws).to(self._device)

    def __call__(self, x: Tensor) -> Tensor:
        """Noise shaped and typed as x, for stochastic solvers."""
        return self.normal(tuple(x.shape[1:])).to(x)
