"""The variational bound by its three terms, in nats per dimension (Ho et al. 2020; Kingma et al. 2021).

prior           KL(q(x_T | x0) | p(x_T)): in closed form from the data's second moment
denoising       1/2 of the integral of snr * mse over logsnr, mse that of x0 per dimension
reconstruction  -ln p(x0 | x) at the cleanest level, over the 256 values of every pixel
"""

import math

import torch
from torch import Tensor

from snrkit.diffusion.level import Level, Scaling, broadcast

NATS_A_BIT = math.log(2)
VALUES = 256


def prior_nats(level: Level, scaling: Scaling, second_moment: float) -> Tensor:
    """KL of the last level's state from where sampling starts: N(0, 1) in vp, N(0, sigma^2) elsewhere.

    In vp (abar m - abar - ln(1 - abar))/2 with m = E x0^2, variance and mean together; elsewhere snr m/2.
    """
    if scaling == "vp":
        return (level.alpha**2 * (second_moment - 1) - torch.log1p(-(level.alpha**2))) / 2
    return torch.exp(level.logsnr) * second_moment / 2


def denoising_nats(logsnr: Tensor, mse: Tensor) -> Tensor:
    """1/2 of the integral of snr * mse over logsnr (L,), rising, by the trapezoidal rule; mse (L,) per dimension."""
    return torch.trapezoid(torch.exp(logsnr) * mse, logsnr) / 2


def reconstruction_nats(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """-ln p(x0 | x) per dimension, p(v | x) in proportion to N(x; alpha v, sigma^2) over the 256 pixel values v.

    x and x0 (B, *), x0 in [-1, 1] of 8 bits. No network: at a level that resolves 8 bits it is nearly 0.
    """
    values = torch.linspace(-1, 1, VALUES, dtype=torch.float64)
    alpha, sigma = (broadcast(part, x.double())[..., None] for part in (level.alpha, level.sigma))
    logits = -((x.double()[..., None] - alpha * values) / sigma).square() / 2
    true = ((x0.double() + 1) / 2 * (VALUES - 1)).round().long()
    return -logits.log_softmax(-1).gather(-1, true[..., None]).mean()
