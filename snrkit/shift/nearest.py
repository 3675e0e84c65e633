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
from snrkit.base.transfer import send
from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Process
from snrkit.shift.spread import at_once

REACH, POINTS = 3.0, 61  # nats either side, and levels tried


@dataclass(frozen=True, slots=True)
class GaussianFit:
    """Mean and variance (D,) of every Hartley coefficient of the data, and the process that noises them."""

    process: Process
    mean: Tensor
    variance: Tensor


def misfits(states: Tensor, level: Level, spectrum: GaussianFit) -> Tensor:
    """(n, K) -2 ln p, less a constant, of states (n, C, H, W) at K levels up to REACH nats round theirs, of shape ().

    NaN at pure noise. On the device of the states, a few at a time; the result is on the CPU.
    """
    if not bool(level.logsnr.isfinite()):
        return torch.full((len(states), POINTS), torch.nan, dtype=torch.float64)
    tried = spectrum.process.level(level.logsnr + _offsets())
    alpha, sigma = tried.alpha[:, None], tried.sigma[:, None]
    of_square = alpha**2 * spectrum.variance + sigma**2  # (K, D), the largest of what is held here
    logs = torch.stack([row.log().sum() for row in of_square])
    of_square.reciprocal_()
    of_value = (of_square * spectrum.mean).mul_(2 * alpha)
    common = tried.alpha**2 * (of_square @ spectrum.mean**2) + logs
    of_square, of_value = send(of_square, states.device).T, send(of_value, states.device).T
    found = torch.empty(len(states), POINTS, dtype=torch.float64, device=states.device)
    few = at_once(states.shape[1:])
    for part, out in zip(torch.split(states, few), torch.split(found, few), strict=True):
        p = hartley(part.double()).flatten(1)
        out.copy_(p.square() @ of_square - p @ of_value)
    return found.cpu() + common


def nearest_shift(misfit: Tensor, weights: Tensor) -> Tensor:
    """(L, 1 + R) logsnr of the level at which states are most likely, minus the nominal one, of misfits (L, n, K).

    The likelihood is that of all images together under each row of weights (1 + R, n). NaN at pure noise.
    """
    fit, offsets = weights @ misfit, _offsets()  # (L, 1 + R, K)
    best = fit.argmin(-1).clamp(1, POINTS - 2)
    left, middle, right = (fit.gather(-1, (best + step)[..., None])[..., 0] for step in (-1, 0, 1))
    bend = (left - 2 * middle + right).clamp(min=1e-12)
    return offsets[best] + ((left - right) / (2 * bend)).clamp(-1, 1) * float(offsets[1] - offsets[0])


def _offsets() -> Tensor:
    return torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)


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
