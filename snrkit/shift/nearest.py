"""The forward level nearest to some states: that at which they are most likely, under a Gaussian fit of the data.

The fit takes the Hartley coefficients of images (frequency.py) as independent Gaussians with the means and variances of
the training split, so that ln p(x; logsnr) is a sum over coefficients of N(alpha m, alpha^2 v + sigma^2). Real images
are no Gaussians, so the reading is compared with that of held-out images noised to the same level, its null.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.frequency import hartley
from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Process

REACH, POINTS = 3.0, 61  # nats either side, and levels tried


@dataclass(frozen=True, slots=True)
class GaussianFit:
    """Mean and variance (D,) of every Hartley coefficient of the data, and the process that noises them."""

    process: Process
    mean: Tensor
    variance: Tensor


def nearest_shift(states: Tensor, levels: Sequence[Level], spectrum: GaussianFit, weights: Tensor) -> Tensor:
    """(L, 1 + R) logsnr of the level at which states (L, n, C, H, W) are most likely, minus the nominal one.

    The likelihood is that of all images together under each row of weights (1 + R, n). NaN at pure noise.
    """
    found = []
    for x, level in zip(states, levels, strict=True):
        if not bool(level.logsnr.isfinite()):
            found.append(torch.full((len(weights),), torch.nan, dtype=torch.float64))
        else:
            found.append(_one_level(hartley(x.double()).flatten(1), level, spectrum, weights))
    return torch.stack(found)


def _one_level(p: Tensor, level: Level, spectrum: GaussianFit, weights: Tensor) -> Tensor:
    offsets = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    tried = spectrum.process.level(level.logsnr + offsets)
    alpha, sigma = tried.alpha[:, None], tried.sigma[:, None]
    spread = alpha**2 * spectrum.variance + sigma**2  # (K, D)
    fit = p.square() @ (1 / spread).T - 2 * (p * spectrum.mean) @ (alpha / spread).T
    fit = weights @ fit + (alpha**2 * spectrum.mean**2 / spread + spread.log()).sum(1)  # -2 ln p (1 + R, K)
    best = fit.argmin(1).clamp(1, POINTS - 2)
    left, middle, right = (fit.gather(1, (best + step)[:, None])[:, 0] for step in (-1, 0, 1))
    bend = (left - 2 * middle + right).clamp(min=1e-12)
    return offsets[best] + ((left - right) / (2 * bend)).clamp(-1, 1) * float(offsets[1] - offsets[0])


def leak(levels: Sequence[Level], spectrum: GaussianFit) -> Tensor:
    """(L,) nats that are read for a relative error of 1 in the variance of all coefficients of the data.

    With w = sigma^2/(alpha^2 v + sigma^2), the share of noise in a coefficient, it is sum w (1 - w)/sum w^2: small
    where noise dominates, large where the likelihood only compares images.
    """
    found = []
    for level in levels:
        share = level.sigma**2 / (level.alpha**2 * spectrum.variance + level.sigma**2)
        found.append((share * (1 - share)).sum() / share.square().sum())
    return torch.stack(found)
