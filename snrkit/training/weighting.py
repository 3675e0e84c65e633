"""Weightings: how much each level counts, written once as the factor of the squared error of eps.

A weight on another target is the same weight times what that target's error is of eps's: with snr = alpha^2/sigma^2,
x0 has 1/snr, v (snr + 1)/snr, flow (1 + sqrt(snr))^2/snr. So a factor w on the loss of x0 is w/snr here.

                  on x0               here, on eps
    simple        snr                 1                      snr_power      snr^g           snr^(g-1)
    min_snr       min(snr, g)         min(1, g/snr)          soft_min_snr   g snr/(snr+g)   g/(snr+g)
    max_snr       max(snr, t)         max(1, t/snr)          snr_clip       clip(snr)       clip(snr)/snr
    log_snr       ln(1+snr)           ln(1+snr)/snr          p2             snr/(k+snr)^g   1/(k+snr)^g
    edm           snr + 1/s^2         1 + 1/(s^2 snr)        sigmoid                        sigmoid(bias - logsnr)

The bare logarithm of snr, found in some posts, is negative below snr 1 and bounds nothing; `max(snr, t)/snr` on x0,
also found under the name min-SNR, is another weighting.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.value import Value
from snrkit.diffusion.level import Level

Density = Callable[[], Tensor]  # of the level sampler, (B,): asked only by what needs it


class Weighting(Protocol):
    """How much each level counts."""

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """The factor (B,) of the squared error in eps space, given the level sampler's density there."""


class Simple(Value):
    """1 on eps (Ho et al. 2020, eq. 14)."""

    kind: Literal["simple"] = "simple"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """1."""
        return torch.ones_like(level.logsnr)


class SnrPower(Value):
    """snr^power on x0: 0 is a constant weight on x0, 1 is `simple`."""

    kind: Literal["snr_power"] = "snr_power"
    power: float = 1.0

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """snr^(power - 1)."""
        return torch.exp((self.power - 1) * level.logsnr)


class SnrPlusOne(Value):
    """snr + 1 on x0, which is 1 on v in vp (Salimans & Ho 2022); EDM's with data of standard deviation 1."""

    kind: Literal["snr_plus_one"] = "snr_plus_one"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """1 + 1/snr."""
        return 1 + torch.exp(-level.logsnr)


class LogSnr(Value):
    """ln(1 + snr) on x0: as snr where it is small, slower where it is large."""

    kind: Literal["log_snr"] = "log_snr"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """ln(1 + snr)/snr, 1 at snr = 0."""
        snr = torch.exp(level.logsnr)
        return torch.where(snr < math.exp(-30), 1.0, torch.log1p(snr) / snr)


class MinSnr(Value):
    """min(snr, gamma) on x0 (Hang et al. 2023)."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(default=5.0, gt=0)

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """min(1, gamma/snr)."""
        return torch.clamp(self.gamma * torch.exp(-level.logsnr), max=1)


class SoftMinSnr(Value):
    """gamma snr/(snr + gamma) on x0 (Crowson et al. 2024); their gamma is 1/sigma_data^2 = 4."""

    kind: Literal["soft_min_snr"] = "soft_min_snr"
    gamma: float = Field(default=4.0, gt=0)

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """gamma/(snr + gamma)."""
        return torch.sigmoid(math.log(self.gamma) - level.logsnr)


class MaxSnr(Value):
    """max(snr, tau) on x0; with tau = 1 the truncated SNR of Salimans & Ho 2022. Grows without bound on eps."""

    kind: Literal["max_snr"] = "max_snr"
    tau: float = Field(default=1.0, gt=0)

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """max(1, tau/snr)."""
        return torch.clamp(self.tau * torch.exp(-level.logsnr), min=1)


class SnrClip(Value):
    """snr on x0, held between a floor and a ceiling."""

    kind: Literal["snr_clip"] = "snr_clip"
    floor: float = Field(default=0.1, gt=0)
    ceiling: float = Field(default=5.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "SnrClip":
        if self.floor >= self.ceiling:
            raise ValueError(f"floor {self.floor} must be below ceiling {self.ceiling}")
        return self

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """clip(snr)/snr."""
        snr = torch.exp(level.logsnr)
        return snr.clamp(self.floor, self.ceiling) / snr


class P2(Value):
    """1/(k + snr)^gamma on eps (Choi et al. 2022, eq. 8); they train with gamma 0.5 and 1."""

    kind: Literal["p2"] = "p2"
    k: float = Field(default=1.0, gt=0)
    gamma: float = Field(default=1.0, ge=0)

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """(k + snr)^-gamma."""
        return (self.k + torch.exp(level.logsnr)) ** -self.gamma


class EdmWeighting(Value):
    """1 on the output of an EDM-preconditioned network (Karras et al. 2022): 1 + sigma^2/(alpha^2 s^2) on eps."""

    kind: Literal["edm"] = "edm"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """1 + exp(-logsnr)/sigma_data^2."""
        return 1 + torch.exp(-level.logsnr) / sigma_data**2


class Elbo(Value):
    """1/density: every nat of logsnr counts alike, the variational bound's own weighting (Kingma et al. 2021).

    With levels drawn from a schedule 1/density is -dlogsnr/dt.
    """

    kind: Literal["elbo"] = "elbo"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """1/density."""
        return 1 / density()


class SpectralBias(Value):
    """A bias that follows the spectrum: `at` for the mean spectrum, higher by what an image's mean logsnr is higher.

    A rule of ours.
    """

    kind: Literal["spectral"] = "spectral"
    at: float = 0.0


class Sigmoid(Value):
    """sigmoid(bias - logsnr) (Kingma & Gao 2023; Hoogeboom et al. 2024), which is e^bias sigmoid(logsnr - bias) on x0.

    `over_density` divides by the level sampler's density, so that the weighting no longer depends on where levels are
    drawn. Shift the bias with the schedule: lower for larger images. Under spectral levels a bias of kind spectral
    follows each image's own schedule.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float | SpectralBias = 0.0
    over_density: bool = True

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """sigmoid(bias - logsnr), over the density if that is asked for."""
        bias = self.bias.at if isinstance(self.bias, SpectralBias) else self.bias
        weight = torch.sigmoid(bias - level.logsnr)
        return weight / density() if self.over_density else weight

    def follow(self, offset: Tensor) -> "Weighting":
        """The weighting of images (B,) whose schedules lie `offset` (B,) nats above the mean spectrum's."""
        return ShiftedSigmoid(self, offset) if isinstance(self.bias, SpectralBias) else self


@dataclass(frozen=True, slots=True)
class ShiftedSigmoid:
    """A sigmoid weighting with a bias of every image's own."""

    value: Sigmoid
    offset: Tensor  # (B,)

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """As that of the value at logsnr - offset; the density is where the image is."""
        shifted = replace(level, logsnr=level.logsnr - self.offset)
        return self.value.weight(shifted, density, sigma_data)


class SigmaSqrt(Value):
    """1/t^2 on flow's velocity, t = sigma/(alpha + sigma) (Esser et al. 2024)."""

    kind: Literal["sigma_sqrt"] = "sigma_sqrt"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """1/t^2, times 1/(1 - t)^2 for eps."""
        half = level.logsnr / 2
        return 1 / (torch.sigmoid(-half) * torch.sigmoid(half)).square()


class Velocity(Value):
    """1 on flow's velocity, the plain loss of flow matching (Lipman et al. 2023), t = sigma/(alpha + sigma)."""

    kind: Literal["velocity"] = "velocity"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """1/(1 - t)^2 on eps."""
        return 1 / torch.sigmoid(level.logsnr / 2).square()


class CosMap(Value):
    """2/(pi (1 - 2t + 2t^2)) on flow's velocity, t = sigma/(alpha + sigma) (Esser et al. 2024)."""

    kind: Literal["cosmap"] = "cosmap"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """2/(pi (t^2 + (1 - t)^2)), times 1/(1 - t)^2 for eps."""
        clean, noise = torch.sigmoid(level.logsnr / 2), torch.sigmoid(-level.logsnr / 2)
        return 2 / math.pi / (clean.square() + noise.square()) / clean.square()


AnyWeighting = Annotated[
    Simple
    | SnrPower
    | SnrPlusOne
    | LogSnr
    | MinSnr
    | SoftMinSnr
    | MaxSnr
    | SnrClip
    | P2
    | EdmWeighting
    | Elbo
    | Sigmoid
    | Velocity
    | SigmaSqrt
    | CosMap,
    Field(discriminator="kind"),
]
