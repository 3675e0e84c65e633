"""What a first-order sampler with an exact denoiser makes of Gaussian data whose rings have powers P_k.

Every frequency is a number x of variance P by itself, x0_hat = alpha P x/(alpha^2 P + sigma^2), and an Euler (DDIM)
step multiplies x by a factor, so that a whole grid multiplies the starting noise by one gain for each P.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from snrkit.diffusion.level import Level


def euler_gain(levels: Sequence[Level], power: Tensor) -> Tensor:
    """What a grid of levels, the clean one last, multiplies a starting state by, for powers P (...)."""
    gain = torch.ones_like(power)
    for here, there in pairwise(levels):
        x0 = here.alpha * power / (here.alpha**2 * power + here.sigma**2)
        eps = (1 - here.alpha * x0) / here.sigma
        gain = gain * (there.alpha * x0 + there.sigma * eps)
    return gain


def spectral_distance(made: Tensor, power: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """(W2^2 over the data's power, KL per frequency in nats) between Gaussians of variances `made` and P, (..., K).

    `counts` (K,) frequencies are in each ring.
    """
    apart = (counts * (made.sqrt() - power.sqrt()) ** 2).sum(-1) / (counts * power).sum(-1)
    ratio = made / power
    return apart, (counts * (ratio - 1 - ratio.log()) / 2).sum(-1) / counts.sum()
