"""Ancestral sampling: Euler's step with part of its noise replaced by fresh noise.

    x' = alpha' x0 + sigma' (sqrt(1 - f) eps + sqrt(f) n),    f = eta^2 (1 - snr/snr')

eta is DDIM's (Song et al. 2021, eq. 16) in every scaling: 0 is Euler, 1 has the variance of DDPM's posterior (Ho et al.
2020, eq. 7) and is k-diffusion's euler_ancestral.

That is the smaller of the two variances of Ho et al. 2020, section 3.2, sigma_t^2 = beta~_t; the larger, beta_t, leaves
the mean and multiplies the variance of the fresh noise. With abar = sigmoid(logsnr) and beta = 1 - abar/abar' of the
levels that are visited, as guided-diffusion respaces its FIXED_LARGE,

    beta / beta~ = (1 - abar) / (1 - abar') = sigmoid(-logsnr) / sigmoid(-logsnr'),

taken in every scaling, so that the path is the same in all of them. A learned variance (Nichol & Dhariwal 2021,
equation 15) lies between the two, number by number, where the network says: beta^v beta~^(1 - v), v = (spread + 1)/2.

The posterior's variance takes x0 as known. Analytic-DPM (Bao et al. 2022) adds what the network does not know of it,

    c^2 Var[x0 | x],   Var[x0 | x] = (sigma/alpha)^2 (1 - E|eps_hat|^2/d),   c = alpha' - alpha sigma' sqrt(1 -
    f)/sigma,

with E|eps_hat|^2/d measured on forward samples; for isotropic Gaussian data the step is then exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Grown, Value
from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import Denoiser
from snrkit.sampling.solvers.euler import recompose
from snrkit.sampling.step import Call, Capabilities, Memory, Noise, Position, Sources, check_one_grid


class Ancestral(Grown):
    """Order 1 (in the distribution), one evaluation per step.

    Noise is renewed only in steps that begin between `logsnr_min` and `logsnr_max`: cut-offs at both ends.
    """

    later: ClassVar[tuple[str, ...]] = ("variance",)
    kind: Literal["ancestral"] = "ancestral"
    eta: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="eta of DDIM (Song et al. 2021, eq. 16): 0 renews no noise, 1 as much as DDPM's posterior",
    )
    variance: Literal["small", "large", "learned"] = Field(
        default="small",
        description="of the fresh noise (Ho et al. 2020, section 3.2): small is the posterior's, beta~; large is beta, "
        "at eta 1; learned is what the network says, between both (Nichol & Dhariwal 2021)",
    )
    logsnr_min: float | None = Field(default=None, description="no fresh noise at noisier levels, nats")
    logsnr_max: float | None = Field(default=None, description="no fresh noise at cleaner levels, nats")

    @model_validator(mode="after")
    def _acts_somewhere(self) -> "Ancestral":
        low, high = self.logsnr_min, self.logsnr_max
        if self.eta == 0 and (low, high) != (None, None):
            raise ValueError("logsnr_min and logsnr_max have no effect at eta 0; drop them")
        if self.variance != "small" and self.eta != 1:
            raise ValueError(f"variance {self.variance} is that of DDPM, whose eta is 1; drop one of them")
        if low is not None and high is not None and low > high:
            raise ValueError(f"logsnr_min {low} must not be above logsnr_max {high}")
        return self

    def missing(self, model: Capabilities) -> str | None:
        """A learned variance, where it is asked for."""
        if self.variance != "learned" or model.spread:
            return None
        return "variance learned needs a model of kind adm or dit that learned one; take small or large"

    @property
    def order(self) -> int:
        """First, of the distribution."""
        return 1

    @property
    def renews(self) -> float | None:
        """All with eta 1 at every level, none with eta 0."""
        everywhere = self.logsnr_min is None and self.logsnr_max is None
        return whole_share(self.eta) if everywhere else None

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Euler's step with the fraction f of the noise's variance renewed; no noise into the clean level."""
        prediction = denoise(x, position.here)
        calls = (Call(position.here, prediction),)
        if self.eta == 0 or position.there.is_clean():
            return recompose(prediction, position.there), calls, None
        alpha, sigma = position.there.scales(x)
        fresh = renewed_share(self.eta, position) * self._acts(position.here)
        kept, renewed = broadcast((1 - fresh).sqrt(), x), self._renewed(position, fresh, x, prediction.spread)
        return alpha * prediction.x0 + sigma * (kept * prediction.eps + renewed * noise(x)), calls, None

    def _renewed(self, position: Position, fresh: Tensor, x: Tensor, spread: Tensor | None) -> Tensor:
        """The standard deviation of the fresh noise over sigma, against x (B, *)."""
        if self.variance == "small":
            return broadcast(fresh.sqrt(), x)
        widening = torch.sigmoid(-position.here.logsnr) / torch.sigmoid(-position.there.logsnr)
        if self.variance == "large":
            return broadcast((widening * fresh).sqrt(), x)
        if spread is None:
            raise SnrkitError("ancestral: variance learned needs a model that learned one; take small or large")
        found: Tensor = broadcast(fresh.sqrt(), x) * broadcast(widening, x) ** ((spread + 1) / 4)
        return found

    def _acts(self, level: Level) -> Tensor:
        low = -math.inf if self.logsnr_min is None else self.logsnr_min
        high = math.inf if self.logsnr_max is None else self.logsnr_max
        return ((level.logsnr >= low) & (level.logsnr <= high)).to(level.logsnr)


def whole_share(eta: float) -> float | None:
    """`eta` where it is 0 or 1."""
    return eta if eta in (0.0, 1.0) else None


def renewed_share(eta: float, position: Position) -> Tensor:
    """f: the share of the next level's noise variance that is fresh."""
    return share_of(eta, position.there.logsnr - position.here.logsnr)


def share_of(eta: float, gap: Tensor) -> Tensor:
    """f of a step over `gap` nats of logsnr, () or (B,)."""
    return eta**2 * -torch.expm1(-gap)


def kept(level: Level, fresh: Tensor) -> Level:
    """`level` without the share `fresh` of the variance of its noise, at the same alpha: its own where f is 0."""
    return Level(level.logsnr - torch.log1p(-fresh), level.alpha, level.sigma * (1 - fresh).sqrt())


def added(level: Level, fresh: Tensor, s_noise: float, noise: Tensor) -> Tensor:
    """The share `fresh` of the noise of `level`, `s_noise` times as large, of standard normal `noise` (B, *)."""
    return broadcast(s_noise * level.sigma * fresh.sqrt(), noise) * noise


class AnalyticDpm(Value):
    """Ancestral steps with Analytic-DPM's variance; E|eps_hat|^2 is measured on training images before sampling."""

    kind: Literal["analytic_dpm"] = "analytic_dpm"
    eta: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="eta of DDIM (Song et al. 2021, eq. 16), for the noise beside that of Var[x0 | x]: 0 is "
        "none, 1 as DDPM",
    )
    bounded: bool = Field(default=True, description="the data lie in [-1, 1], so Var[x0 | x] is at most 1")
    last_noise: float | None = Field(
        default=None,
        gt=0,
        description="largest mean size of the noise in the step before the last, in grey levels of 255; default: "
        "no limit",
    )
    order: ClassVar[int] = 1

    def open(self, sources: Sources, levels: Sequence[Level]) -> "AnalyticSteps":
        """The solver with its variances for one grid."""
        check_one_grid(levels)
        levels = [level for level in levels if not level.is_clean()]
        if bool((levels[0].alpha == 0).any()):
            raise SnrkitError(
                "analytic_dpm is undefined at alpha = 0, where this grid starts; choose a grid that starts below it"
            )
        square = sources.forward(levels).eps_square
        ratio = torch.stack([(level.sigma / level.alpha).double() for level in levels])
        unknown = ratio**2 * (1 - square).clamp(min=0)
        if self.bounded:
            unknown = unknown.clamp(max=1)
        return AnalyticSteps(self, unknown)


@dataclass(frozen=True, slots=True)
class AnalyticSteps:
    """Analytic-DPM with Var[x0 | x] (L,) at every level of a grid."""

    value: AnalyticDpm
    unknown: Tensor
    order: int = 1

    @property
    def renews(self) -> float | None:
        """All with eta 1; with less there is still the noise of what the network does not know."""
        return 1.0 if self.value.eta == 1 else None

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """The ancestral mean, and noise of the analytic variance; none into the clean level."""
        prediction = denoise(x, position.here)
        calls = (Call(position.here, prediction),)
        if position.there.is_clean():
            return recompose(prediction, position.there), calls, None
        alpha, sigma = position.there.scales(x)
        here, there, fresh = position.here, position.there, renewed_share(self.value.eta, position)
        gain = there.alpha - here.alpha * there.sigma * (1 - fresh).sqrt() / here.sigma
        variance = there.sigma**2 * fresh + gain**2 * self.unknown[position.index]
        if self.value.last_noise is not None and position.index == len(position.grid) - 3:  # E|n| = sqrt(2/pi) std
            variance = variance.clamp(max=(self.value.last_noise * 2 / 255) ** 2 * math.pi / 2)
        mean = alpha * prediction.x0 + sigma * broadcast((1 - fresh).sqrt(), x) * prediction.eps
        return mean + broadcast(variance.sqrt(), x) * noise(x), calls, None
