"""The Gaussian control: what a perfect network would need.

On centred Gaussian data the exact denoiser is linear, so a sampler's whole effect is one number a mode, the ratio of
its final variance to the data's, found by walking unit patterns through the real solver and the real corrections. A
coefficient that brings the ratio to 1 is *predicted* without any fitting: it repairs the discretisation alone. Whatever
a correction gains beyond it is about the network, or about what the data are beside their covariance: for any data and
the exact denoiser, one Euler step sigma -> sigma' of x0 + sigma eps gives, in every direction,

    E x'^2 = E x0^2 + sigma'^2 - (1 - sigma'/sigma)^2 MMSE(sigma)

with the minimum mean square error of x0 there. The Gaussian's is the linear one, which is never smaller, so that the
deficit of variance that is predicted is an upper bound of that of each step.

The data's own covariance gives the modes. Where a correction acts on bands they are taken within the low Haar band and
within the three high ones, so that it acts on each mode alone; what low and high have in common is then left out. Where
images are too large for a covariance, or odd in size, the four bands stand in, each at its mean variance: a coarse
picture of a spectrum that spans orders of magnitude.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.wavelet import Bands, idwt2
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, from_x0
from snrkit.diffusion.process import Process
from snrkit.sampling.grid import Grid, ImageGrid, Placement, Told
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import OpenedSampler
from snrkit.sampling.step import Fit, ForwardStatistics, LevelPosterior, NamedEstimator, NamedFit, NamedWeights, Sources

BISECTIONS = 50
BANDS = 4


@dataclass(frozen=True, slots=True)
class ModeDenoiser:
    """The exact denoiser of centred Gaussian images with variances (D,) along orthonormal directions (D, C, H, W)."""

    process: Process
    variances: Tensor
    directions: Tensor
    low: Tensor  # (D,) whether a direction lies in the low band; else it lies in the high ones

    def __call__(
        self, x: Tensor, level: Level, *, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        """Each mode shrunk by its own Wiener gain; not being told changes nothing."""
        known = told if isinstance(told, Level) else level
        alpha, sigma = (part if part.ndim == 0 else part[:, None] for part in (known.alpha, known.sigma))
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return from_x0(x, self.images(gain * self.coordinates(x)), level)

    def coordinates(self, x: Tensor) -> Tensor:
        """(B, D) of images (B, C, H, W)."""
        return x.flatten(1) @ self.directions.flatten(1).T

    def images(self, coordinates: Tensor) -> Tensor:
        """(B, C, H, W) of coordinates (B, D)."""
        return torch.einsum("bd,d...->b...", coordinates, self.directions)

    def denoiser(self, named: NamedWeights) -> Denoiser:
        """No weaker model has a closed form: SnrkitError."""
        raise SnrkitError("autoguidance has no Gaussian control; tune it by fd or gap")

    def estimator(self, named: NamedEstimator) -> LevelPosterior:
        """No estimator has one: SnrkitError."""
        raise SnrkitError("what asks an estimator of levels has no Gaussian control; tune it by fd or gap")

    def fit(self, named: NamedFit) -> Fit:
        """What is fitted to a network has no closed form: SnrkitError."""
        raise SnrkitError("what is fitted to a network's flow has no Gaussian control; tune it by flow")

    def placement(self, grid: Grid | ImageGrid) -> Placement | None:
        """Gaussian data have no images, each with levels of its own: SnrkitError."""
        if isinstance(grid, ImageGrid):
            raise SnrkitError(f"a {grid.kind} grid has no Gaussian control; tune it by fd or gap")
        return None

    def telling(self, told: Told) -> Sources:
        """Nor has what a network is told of them: SnrkitError."""
        raise SnrkitError("told_spectrum has no Gaussian control; tune it by fd or gap")

    def forward(self, levels: Sequence[Level]) -> ForwardStatistics:
        """E|eps_hat|^2 and Var[x0_hat] of these data in closed form."""
        squares, spreads = [], []
        for level in levels:
            total = level.alpha**2 * self.variances + level.sigma**2
            squares.append((level.sigma**2 / total).mean())
            spreads.append((level.alpha**2 * self.variances**2 / total).mean())
        return ForwardStatistics(torch.stack(squares), torch.stack(spreads))


def of_bands(process: Process, variances: Tensor) -> ModeDenoiser:
    """The control of images of 2x2 pixels with variances (4,) of the bands ll, lh, hl and hh."""
    directions = torch.cat(haar_units((1, 2, 2)))
    return ModeDenoiser(process, variances.double(), directions, torch.arange(BANDS) == 0)


def of_covariance(process: Process, covariance: Tensor, shape: tuple[int, int, int], apart: bool) -> ModeDenoiser:
    """The control of images (C, H, W) of a covariance (C*H*W, C*H*W).

    `apart`: modes within the low Haar band and within the high ones, H and W even; else those of the whole covariance,
    none of which is called low.
    """
    every = torch.eye(len(covariance), dtype=torch.float64)
    low, *high = [units.flatten(1) for units in haar_units(shape)] if apart else [every[:0], every]
    found = []
    for basis in (low, torch.cat(high)):
        values, rotation = torch.linalg.eigh(basis @ covariance.double() @ basis.T)
        found.append((values.clamp(min=0), (rotation.T @ basis).reshape(-1, *shape)))
    variances, directions = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ModeDenoiser(process, variances, directions, torch.arange(len(variances)) < len(low))


def haar_units(shape: tuple[int, int, int]) -> list[Tensor]:
    """The images (n, C, H, W) that have a single coefficient of 1, for each of the bands ll, lh, hl and hh."""
    channels, height, width = shape
    count = channels * (height // 2) * (width // 2)
    units = torch.eye(count, dtype=torch.float64).reshape(count, channels, height // 2, width // 2)
    none = torch.zeros_like(units)
    places = ([units if k == band else none for k in range(BANDS)] for band in range(BANDS))
    return [idwt2(Bands(*bands), (height, width)) for bands in places]


def mode_powers(ready: OpenedSampler, denoise: ModeDenoiser, published_start: Callable[[Tensor], Tensor]) -> Tensor:
    """(D,) final variance along every direction.

    The state is linear in the first state and in each draw of noise, so one image a source of randomness is walked: the
    first carries the first state, image k the k-th draw. `published_start` scales unit noise into the first state.
    """
    draws, count = 0, len(ready.levels)
    pattern = denoise.images(torch.ones(1, len(denoise.variances), dtype=torch.float64))[0]

    def noise(x: Tensor) -> Tensor:
        nonlocal draws
        draws += 1
        fresh = torch.zeros_like(x)
        fresh[draws] = pattern
        return fresh

    x = torch.zeros(count + 1, *pattern.shape, dtype=torch.float64)
    x[0] = published_start(pattern)
    for step in sample(denoise, ready.solver, ready.levels, x, corrections=ready.corrections, noise=noise):
        x = step.x_next
    return denoise.coordinates(x).square().sum(0)


def solve_for(ratio: Callable[[float], float], low: float, high: float) -> float | None:
    """The coefficient in [low, high] at which `ratio` is 1, by bisection; None where it is not crossed."""
    above = ratio(low) > 1
    if (ratio(high) > 1) == above:
        return None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if (ratio(middle) > 1) == above:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def solve_near(ratio: Callable[[float], float], start: float, low: float, high: float, step: float) -> float | None:
    """The coefficient nearest to `start` at which `ratio` is 1, looked for both ways in steps of `step`."""
    above = ratio(start) > 1
    for count in range(1, math.ceil((high - low) / step) + 1):
        for way in (1, -1):
            near, far = start + way * (count - 1) * step, start + way * count * step
            if low <= far <= high and (ratio(far) > 1) != above:
                return solve_for(ratio, min(near, far), max(near, far))
    return None
