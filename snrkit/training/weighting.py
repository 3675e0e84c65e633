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
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Value
from snrkit.diffusion.level import Level
from snrkit.spectral.levels import SpectralBias
from snrkit.training.level_samplers import LevelSampler

Density = Callable[[], Tensor]  # of the level sampler, (B,): asked only by what needs it


class Weighting(Protocol):
    """How much each level counts. Training asks it in several threads at once."""

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """The factor (B,) of the squared error in eps space, given the level sampler's density there."""


@runtime_checkable
class OwnWeighting(Protocol):
    """A weighting that is another one for each image; itself it weighs the data set as a whole."""

    def of(self, images: Tensor) -> Weighting:
        """That of these images (B,) of the data set, row by row."""


def weighting_of(weighting: Weighting, images: Tensor) -> Weighting:
    """The weighting of these images (B,) of the data set: their own where they have one."""
    return weighting.of(images) if isinstance(weighting, OwnWeighting) else weighting


@runtime_checkable
class Follows(Protocol):
    """A weighting that may need to know where training looks."""

    def follow(self, levels: LevelSampler) -> Weighting:
        """The weighting beside this level sampler. SnrkitError where it cannot follow it."""


def beside(weighting: Weighting, levels: LevelSampler) -> Weighting:
    """The weighting as it is beside a level sampler."""
    return weighting.follow(levels) if isinstance(weighting, Follows) else weighting


@runtime_checkable
class Offsets(Protocol):
    """A level sampler that knows how much noisier or cleaner it is for single images."""

    def offset(self, images: Tensor) -> Tensor:
        """(B,) nats by which the mean logsnr of these images (B,) is above that of the data set as a whole."""


class Simple(Value):
    """1 on eps (Ho et al. 2020, eq. 14)."""

    kind: Literal["simple"] = "simple"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        return torch.ones_like(level.logsnr)


class RawScore(Value):
    """1 on the score -eps/sigma itself, unbounded at the clean end: what Song et al. 2021 multiply by sigma^2."""

    kind: Literal["score"] = "score"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """1/sigma^2 on eps, sigma in the process's own scaling."""
        return level.sigma**-2


class SnrPower(Value):
    """snr^power on x0: 0 is a constant weight on x0, 1 is `simple`."""

    kind: Literal["snr_power"] = "snr_power"
    power: float = Field(
        default=1.0, description="exponent of snr in the weight on x0; 0 is constant there, 1 is constant on eps"
    )

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        return torch.exp((self.power - 1) * level.logsnr)


class SnrPlusOne(Value):
    """snr + 1 on x0, which is 1 on v in vp (Salimans & Ho 2022); EDM's with data of standard deviation 1."""

    kind: Literal["snr_plus_one"] = "snr_plus_one"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
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
    gamma: float = Field(
        default=5.0, gt=0, description="gamma of Hang et al. 2023: largest weight on x0, kept where snr is larger"
    )

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        return torch.clamp(self.gamma * torch.exp(-level.logsnr), max=1)


class SoftMinSnr(Value):
    """gamma snr/(snr + gamma) on x0 (Crowson et al. 2024); their gamma is 1/sigma_data^2 = 4."""

    kind: Literal["soft_min_snr"] = "soft_min_snr"
    gamma: float = Field(
        default=4.0,
        gt=0,
        description="gamma of Crowson et al. 2024: weight on x0 that is approached where snr is large",
    )

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        return torch.sigmoid(math.log(self.gamma) - level.logsnr)


class MaxSnr(Value):
    """max(snr, tau) on x0; with tau = 1 the truncated SNR of Salimans & Ho 2022. Grows without bound on eps."""

    kind: Literal["max_snr"] = "max_snr"
    tau: float = Field(default=1.0, gt=0, description="least weight on x0, kept where snr is smaller")

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        return torch.clamp(self.tau * torch.exp(-level.logsnr), min=1)


class SnrClip(Value):
    """snr on x0, held between a floor and a ceiling."""

    kind: Literal["snr_clip"] = "snr_clip"
    floor: float = Field(default=0.1, gt=0, description="least weight on x0, kept where snr is smaller")
    ceiling: float = Field(default=5.0, gt=0, description="largest weight on x0, kept where snr is larger")

    @model_validator(mode="after")
    def _ordered(self) -> "SnrClip":
        if self.floor >= self.ceiling:
            raise ValueError(f"floor {self.floor} must be below ceiling {self.ceiling}")
        return self

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        snr = torch.exp(level.logsnr)
        return snr.clamp(self.floor, self.ceiling) / snr


class P2(Value):
    """1/(k + snr)^gamma on eps (Choi et al. 2022, eq. 8); they train with gamma 0.5 and 1."""

    kind: Literal["p2"] = "p2"
    k: float = Field(
        default=1.0, gt=0, description="k of Choi et al. 2022, eq. 8: snr about which the weight on eps begins to fall"
    )
    gamma: float = Field(
        default=1.0,
        ge=0,
        description="gamma of Choi et al. 2022, eq. 8: exponent with which it falls; 0 is constant on eps",
    )

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        return (self.k + torch.exp(level.logsnr)) ** -self.gamma


class EdmWeighting(Value):
    """1 on the output of an EDM-preconditioned network (Karras et al. 2022): 1 + sigma^2/(alpha^2 s^2) on eps."""

    kind: Literal["edm"] = "edm"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        return 1 + torch.exp(-level.logsnr) / sigma_data**2


class Elbo(Value):
    """1/density: every nat of logsnr counts alike, the variational bound's own weighting (Kingma et al. 2021).

    With levels drawn from a schedule 1/density is -dlogsnr/dt.
    """

    kind: Literal["elbo"] = "elbo"

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        return 1 / density()


class Sigmoid(Value):
    """sigmoid(bias - logsnr) (Kingma & Gao 2023; Hoogeboom et al. 2024), which is e^bias sigmoid(logsnr - bias) on x0.

    `over_density` divides by the level sampler's density, so that the weighting no longer depends on where levels are
    drawn. Shift the bias with the schedule: lower for larger images. A bias that is no number is that of the data set
    as a whole, and follows the levels of each image.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float | SpectralBias = Field(
        default=0.0,
        description="logsnr where the weight on eps is one half, nats; of kind spectral it follows the levels of "
        "each image",
    )
    over_density: bool = Field(
        default=True,
        description="divide by the density of the level sampler, so that where levels are drawn no longer counts",
    )

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """sigmoid(bias - logsnr), over the density if that is asked for."""
        bias = self.bias.at if isinstance(self.bias, SpectralBias) else self.bias
        weight = torch.sigmoid(bias - level.logsnr)
        return weight / density() if self.over_density else weight

    def follow(self, levels: LevelSampler) -> Weighting:
        """Itself, or with the bias of each image's own; SnrkitError where levels are one for all."""
        if not isinstance(self.bias, SpectralBias):
            return self
        if not isinstance(levels, Offsets):
            raise SnrkitError(
                f"weighting.bias: kind {self.bias.kind} follows levels of each image's own; give a number"
            )
        return FollowingSigmoid(self, levels)


@dataclass(frozen=True, slots=True)
class FollowingSigmoid:
    """A sigmoid weighting whose bias follows the levels of each image."""

    value: Sigmoid
    levels: Offsets

    def weight(self, level: Level, density: Density, sigma_data: float) -> Tensor:
        """That of the data set as a whole."""
        return self.value.weight(level, density, sigma_data)

    def of(self, images: Tensor) -> "ShiftedSigmoid":
        """With the bias higher by what these images' (B,) mean logsnr is higher."""
        return ShiftedSigmoid(self.value, self.levels.offset(images))


@dataclass(frozen=True, slots=True)
class ShiftedSigmoid:
    """A sigmoid weighting of images (B,) whose levels lie `offset` (B,) nats above those of the data set as a whole."""

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
    | RawScore
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
