"""Counter-based randomness: every draw is keyed by what it is for, never by what was drawn before.

The global batch of training step k is cut into slices of fixed size; slice j draws from Philox keyed by
(seed, k, j). Image i of a sampler draws from a stream of its own, label first, then noise. So neither a restart nor the
number of processes changes what is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snrkit.base.streams import IMAGE, LATENTS_TRAIN, TRAIN
from snrkit.base.transfer import HOST, send
from snrkit.data.augment import DRAWS

Array = np.ndarray[Any, Any]


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
    chance: Tensor  # (n,) float64 in [0, 1), for perturbations
    scalars: Tensor  # (n,) float64 in [0, 1), for what is left to chance of the scalars that a network is told
    extra: Tensor | None = None  # (n, extras, C, H, W), where the plan asks for it
    latents: Tensor | None = None  # (n, C, H, W) float32, standard normal: of the posterior, where the images have one


@dataclass(frozen=True, slots=True)
class Plan:
    """The shape of every step's draws."""

    seed: int
    batch: int
    slice: int
    pool: int  # images in the training split
    shape: tuple[int, int, int]
    extras: int | None = None  # draws of noise beside eps; None: no perturbation asks for any
    latents: bool = False  # whether images are drawn from a posterior

    def draw(self, step: int, slices: Sequence[int]) -> Draws:
        """The draws of the given slices of step `step`, in order."""
        n, kinds = len(slices) * self.slice, 1 + (self.extras or 0)
        positions = np.empty(n, np.int64)
        uniform, last = np.empty((n, 4 + DRAWS)), np.empty((n, 2))
        noise = np.empty((kinds, n, *self.shape), np.float32)
        for place, index in enumerate(slices):
            rows = slice(place * self.slice, (place + 1) * self.slice)
            rng = self._open(step, index)
            positions[rows] = rng.integers(self.pool, size=self.slice)
            rng.random(out=uniform[rows])
            for kind in range(kinds):
                rng.standard_normal(dtype=np.float32, out=noise[kind, rows])
            last[rows] = np.stack([rng.random(self.slice), rng.random(self.slice)], 1)
        stratum = np.concatenate([np.arange(i * self.slice, (i + 1) * self.slice) for i in slices])
        level = torch.from_numpy((stratum + uniform[:, 0]) / self.batch).clamp(2.0**-53, 1 - 2.0**-53)
        drops, chances = torch.from_numpy(uniform), torch.from_numpy(last)
        return Draws(
            torch.from_numpy(positions),
            level,
            drops[:, 1],
            drops[:, 2],
            drops[:, 3],
            drops[:, 4:],
            torch.from_numpy(noise[0]),
            chances[:, 0],
            chances[:, 1],
            None if self.extras is None else torch.from_numpy(noise[1:]).transpose(0, 1),
            self._latents(step, slices) if self.latents else None,
        )

    def _latents(self, step: int, slices: Sequence[int]) -> Tensor:
        """From a stream of its own, so that all other draws are those of images without a posterior."""
        shape = (self.slice, *self.shape)
        drawn = [LATENTS_TRAIN.open(self.seed, step, i).standard_normal(shape, dtype=np.float32) for i in slices]
        return torch.from_numpy(np.concatenate(drawn))

    def positions(self, step: int, slices: Sequence[int]) -> Tensor:
        """The positions alone of `draw`, which each slice draws first."""
        drawn = [self._open(step, index).integers(self.pool, size=self.slice) for index in slices]
        return torch.from_numpy(np.concatenate(drawn))

    def _open(self, step: int, index: int) -> np.random.Generator:
        return TRAIN.open(self.seed, step, index)


class ImageStreams:
    """The random streams of a batch of images to be sampled, one per seed: a label first, then noise."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = HOST) -> None:
        self._streams = [IMAGE.open(seed) for seed in seeds]
        self._device = torch.device(device)
        self._labels = torch.tensor([rng.random() for rng in self._streams], dtype=torch.float64)

    def labels(self, classes: int) -> Tensor:
        """(B,) int64, uniform over `classes`."""
        return send((self._labels * classes).long(), self._device)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) standard normal, float32 values; the next draw of each stream."""
        draws = np.empty((len(self._streams), *shape), np.float32)
        for rng, out in zip(self._streams, draws, strict=True):
            rng.standard_normal(dtype=np.float32, out=out)  # without the interpreter's lock
        return send(torch.from_numpy(draws), self._device)

    def __call__(self, x: Tensor) -> Tensor:
        """Noise shaped and typed as x, for stochastic solvers."""
        return send(self.normal(tuple(x.shape[1:])).to(x.dtype), x.device)
