"""The Gaussian control: what a perfect network would need.

On Gaussian data whose Haar bands have the variances of the data set's, the exact denoiser is linear, so a sampler's
whole effect on each band is one number, the ratio of its final variance to the data's, found by walking unit patterns
through the real solver and the real corrections. A coefficient that brings the ratio to 1 is *predicted* without any
fitting: it repairs the discretisation alone. Whatever a correction gains beyond it is about the network.

Every band is taken at its mean variance. In the ve scaling the prediction hardly depends on it; in flow it does, and
there the four bands are a coarse picture of a spectrum that spans orders of magnitude.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from snrkit.errors import SnrkitError
from snrkit.level import Level
from snrkit.prediction import SAME, Cond, Denoiser, Prediction, Same, from_x0
from snrkit.process import Process
from snrkit.sample import sample
from snrkit.sampler import Ready
from snrkit.step import ForwardStatistics, LevelPosterior
from snrkit.wavelet import Bands, dwt2, idwt2

BISECTIONS = 50
BANDS = 4


@dataclass(frozen=True, slots=True)
class BandDenoiser:
    """The exact denoiser of centred Gaussian images of 2x2 pixels with variances (4,) of the bands ll, lh, hl, hh."""

    process: Process
    variances: Tensor

    def __call__(
        self, x: Tensor, level: Level, *, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        """Each band shrunk by its own Wiener gain; not being told changes nothing."""
        known = told if isinstance(told, Level) else level
        alpha, sigma = known.scales(x)
        bands = dwt2(x)
        shrunk = [
            alpha * v / (alpha**2 * v + sigma**2) * band
            for v, band in zip(self.variances.tolist(), (bands.ll, bands.lh, bands.hl, bands.hh), strict=True)
        ]
        return from_x0(x, idwt2(Bands(*shrunk), (2, 2)), level)

    def denoiser(self, run: Path | None, checkpoint: int | None, average: str | None) -> Denoiser:
        """No weaker model has a closed form: SnrkitError."""
        raise SnrkitError("autoguidance has no Gaussian control; tune it by fd or gap")

    def estimator(self) -> LevelPosterior:
        """No estimator has one: SnrkitError."""
        raise SnrkitError("noise_awareness_classifier has no Gaussian control; tune it by fd or gap")

    def forward(self, levels: Sequence[Level]) -> ForwardStatistics:
        """E|eps_hat|^2 and Var[x0_hat] of these data in closed form."""
        squares, spreads = [], []
        for level in levels:
            total = level.alpha**2 * self.variances + level.sigma**2
            squares.append((level.sigma**2 / total).mean())
            spreads.append((level.alpha**2 * self.variances**2 / total).mean())
        return ForwardStatistics(torch.stack(squares), torch.stack(spreads))


def band_ratios(ready: Ready, denoise: BandDenoiser, published_start: Callable[[Tensor], Tensor]) -> Tensor:
    """(4,) final variance of every band over the data's.

    The state is linear in the first state and in each draw of noise, so one image a source of randomness is walked: the
    first carries the first state, image k the k-th draw. `published_start` scales unit noise into the first state.
    """
    draws, count = 0, len(ready.levels)
    pattern = idwt2(Bands(*(torch.full((1, 1), 1.0, dtype=torch.float64),) * BANDS), (2, 2))

    def noise(x: Tensor) -> Tensor:
        nonlocal draws
        draws += 1
        fresh = torch.zeros_like(x)
        fresh[draws] = pattern
        return fresh

    x = torch.zeros(count + 1, 1, 2, 2, dtype=torch.float64)
    x[0] = published_start(pattern)
    for step in sample(denoise, ready.solver, ready.levels, x, corrections=ready.corrections, noise=noise):
        x = step.x_next
    bands = dwt2(x[:, 0])
    power = torch.stack([b.square().sum() for b in (bands.ll, bands.lh, bands.hl, bands.hh)])
    return power / denoise.variances


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
