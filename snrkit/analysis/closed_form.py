"""How hard each target is at each level, for Gaussian data of variance s^2 per dimension, in closed form.

For a target y = a x0 + b eps of the state x = alpha x0 + sigma eps, with d = alpha^2 s^2 + sigma^2 = Var x:

    Var y = a^2 s^2 + b^2        Cov(y, x) = a alpha s^2 + b sigma        Var(y | x) = (a sigma - b alpha)^2 s^2/d

and every metric follows from these three, in all scalings. Var(y | x) is the Bayes error, the square of EDM's c_out.
An image is taken frequency ring by ring: the sum over rings is the whole, for errors and for information. Real data
are not Gaussian: their Bayes error is lower, and their v is predictable.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.diffusion.denoiser import Precondition
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Target, posterior_weights
from snrkit.diffusion.process import Process
from snrkit.training.weighting import Density, Weighting


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The metrics of a target given the state, each shaped as the levels; information in nats per dimension."""

    correlation: Tensor
    bayes_error: Tensor
    gradient_scale: Tensor  # the root of the Bayes error: what is left of a gradient at the optimum
    information: Tensor
    predictability: Tensor  # Var E[y | x] over Var(y | x)
    slope: Tensor  # of the linear regression of y on x
    variance: Tensor
    preconditioning: Tensor  # 1 over the gradient scale


def difficulty(level: Level, target: Target, variance: float) -> Difficulty:
    """Of a target at `level` (any shape) for data of this variance."""
    a, b = target.direction(level)
    known, total = moments(level, target, variance)
    covariance = a * level.alpha * variance + b * level.sigma
    d = level.alpha**2 * variance + level.sigma**2
    correlation = covariance / (d * total).sqrt()
    return Difficulty(
        correlation,
        known,
        known.sqrt(),
        (total / known).log() / 2,
        covariance**2 / (d * known),
        covariance / d,
        total,
        known.rsqrt(),
    )


def moments(level: Level, target: Target, variance: float | Tensor) -> tuple[Tensor, Tensor]:
    """(Var(y | x), Var y) at `level`, broadcast against `variance`."""
    a, b = target.direction(level)
    d = level.alpha**2 * variance + level.sigma**2
    return (a * level.sigma - b * level.alpha) ** 2 * variance / d, a**2 * variance + b**2


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Power P_k of the frequency rings of a data set round its mean image, and the share of all dimensions in each.

    Both (K,) float64. `mean_square` is that of the mean image, per dimension.
    """

    power: Tensor
    share: Tensor
    mean_square: float = 0.0

    @property
    def variance(self) -> float:
        """Mean over dimensions."""
        return float((self.power * self.share).sum())

    @property
    def second_moment(self) -> float:
        """E x0^2, mean over dimensions."""
        return self.variance + self.mean_square


@dataclass(frozen=True, slots=True)
class RingDifficulty:
    """A target on coloured Gaussian data: means over dimensions, each (L,); R^2 by ring (L, K)."""

    bayes_error: Tensor
    variance: Tensor
    explained: Tensor  # 1 - Bayes error over variance
    information: Tensor
    by_ring: Tensor


def ring_difficulty(level: Level, target: Target, spectrum: Spectrum) -> RingDifficulty:
    """Of a target at levels (L,) for Gaussian data of this spectrum. Rings without power carry no information of x0."""
    wide = Level(*(part[:, None] for part in (level.logsnr, level.alpha, level.sigma)))
    known, total = moments(wide, target, spectrum.power)
    error, whole = (known * spectrum.share).sum(1), (total * spectrum.share).sum(1)
    ratio = torch.where(known > 0, total / known, 1.0)
    information = (ratio.log() / 2 * spectrum.share).sum(1)
    return RingDifficulty(error, whole, 1 - error / whole, information, 1 - torch.where(total > 0, known / total, 1.0))


def weighted_scale(level: Level, density: Density, weighting: Weighting, sigma_data: float, variance: float) -> Tensor:
    """The root of the weighted loss at the optimum, which is one for all targets: sqrt(w_eps alpha^2 s^2/d).

    It is no gradient: that of w |F - F*|^2 goes with w and the root of the Bayes error, and is each target's own.
    A weighting on eps is w_eps alpha^2/(alpha b - sigma a)^2 on y, and Var(y | x) has the inverse of that factor.
    """
    d = level.alpha**2 * variance + level.sigma**2
    weight = weighting.weight(level, density, sigma_data)
    return (weight * level.alpha**2 * variance / d).sqrt()


def output_scale(
    level: Level, target: Target, precondition: Precondition, process: Process, sigma_data: float, variance: float
) -> Tensor:
    """The root of the Bayes error of the network's own output F = (y - c_skip x)/c_out: 1 with EDM's at its own s."""
    known, _ = moments(level, target, variance)
    c = precondition.coefficients(level, target, process.scaling, sigma_data)
    return known.sqrt() / c.c_out.abs()


def output_signal_to_noise(
    level: Level,
    target: Target,
    precondition: Precondition,
    process: Process,
    sigma_data: float,
    variance: float,
    mean_square: float = 0.0,
) -> Tensor:
    """|E[F* | x]|^2 over tr Var(F* | x), averaged over x, of what the network is to put out.

    Of data of this variance round a mean image whose mean square is `mean_square`. It is the signal to noise of a
    loss's gradient given x while the network's output is near 0. For centred data without preconditioning it is the
    predictability, with EDM's at its own s 0.
    """
    a, _ = target.direction(level)
    found = difficulty(level, target, variance)
    c = precondition.coefficients(level, target, process.scaling, sigma_data)
    d = level.alpha**2 * variance + level.sigma**2
    mean = (a - c.c_skip * level.alpha) ** 2 * mean_square
    return ((found.slope - c.c_skip) ** 2 * d + mean) / found.bayes_error


def posterior_mean_share(before: Level, after: Level, variance: float) -> tuple[Tensor, Tensor]:
    """(variance, share unknown given x) of DDPM's posterior mean of x at `after` given x at `before` and x0.

    mu-tilde = p x0 + q x with p = alpha' (1 - r) and q = r alpha'/alpha, r = SNR(t)/SNR(t - 1), in vp; what is unknown
    given x is p^2 Var(x0 | x). But for the last steps of tables that end in pure noise, nearly all of it is x itself.
    """
    p, q = posterior_weights(before.logsnr, after.alpha)
    d = before.alpha**2 * variance + before.sigma**2
    unknown = p**2 * variance * before.sigma**2 / d
    total = p**2 * variance + q**2 * d + 2 * p * q * before.alpha * variance
    return total, unknown / total
