"""Level samplers: where training looks, each a density over logsnr given as an inverse CDF of uniforms.

Changing the density by a factor is undone by dividing the weighting by it, so that the two act as one product in the
expected loss (Kingma & Gao 2023); what differs is the variance of the gradient, and what an optimizer makes of it.

`uniform_sigma`, `loguniform`, `laplace`, `cauchy` and `cosine` stay inside the process's bounds, between which their
density is renormalised; `lognormal` and `logit_normal` do not, as published, and draws beyond the ends of a table fall
on its ends. Small u is clean.

A level sampler may be one for each image (`OwnLevels`), and levels may have to see the images of a data set before they
are a level sampler (`LevelsOfData`).
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from scipy.special import betaincinv  # type: ignore[import-untyped]
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Value
from snrkit.data.measured import Measured
from snrkit.diffusion.process import Process, own_time, shift_of
from snrkit.spectral.levels import SpectralLevels

Positive = Annotated[float, Field(gt=0)]


class LevelSampler(Protocol):
    """A density over logsnr. Training asks it in several threads at once."""

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """logsnr (B,) of stratified uniforms u (B,) in (0, 1), float64; snapped to a process's table by the caller."""

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """p(logsnr), which integrates to 1."""


@runtime_checkable
class OwnLevels(Protocol):
    """A level sampler that is another one for each image; itself it draws for the data set as a whole."""

    def of(self, images: Tensor) -> LevelSampler:
        """That of these images (B,) of the data set, drawn and weighed row by row."""


def levels_of(levels: LevelSampler, images: Tensor) -> LevelSampler:
    """The level sampler of these images (B,) of the data set: their own where they have one."""
    return levels.of(images) if isinstance(levels, OwnLevels) else levels


@runtime_checkable
class LevelsOfData(Protocol):
    """Levels that follow from the images of a data set, of which they are yet to be made."""

    def open(self, images: Measured) -> LevelSampler:
        """The level sampler of these images; DataError where it cannot be made of them."""


@runtime_checkable
class Bounded(Protocol):
    """Levels of data that are known to lie within those of one level sampler."""

    def widest(self) -> LevelSampler:
        """One that reaches as far as that of any data set, to try out what is to hold for all."""


def widest(levels: LevelSampler | LevelsOfData) -> LevelSampler | None:
    """A level sampler that reaches as far as these levels do on any data set; None where none is known."""
    if isinstance(levels, Bounded):
        return levels.widest()
    return None if isinstance(levels, LevelsOfData) else levels


class UniformTime(Value):
    """Uniform in the process's own time: index (ddpm), t (flow, vp), sigma (edm)."""

    kind: Literal["uniform_time"] = "uniform_time"

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """The process's own draw."""
        return own_time(process).draw(u)

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """The process's own density."""
        return own_time(process).draw_density(logsnr)


def normal_quantile(u: Tensor) -> Tensor:
    """Of the standard normal, float64."""
    found: Tensor = torch.special.ndtri(u.to(torch.float64))
    return found


def normal_density(z: Tensor) -> Tensor:
    """Of the standard normal."""
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


class LogNormal(Value):
    """ln(sigma/alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1); logsnr ~ N(-2 mean, (2 std)^2).

    EDM2 (Karras et al. 2024) takes (-0.8, 1.6) at 64 pixels and (-0.4, 1.0) for latents of 512.
    """

    kind: Literal["lognormal"] = "lognormal"
    mean: float = Field(default=-1.2, description="mean of ln(sigma/alpha) (P_mean of Karras et al. 2022)")
    std: Positive = Field(
        default=1.2, description="standard deviation of ln(sigma/alpha) (P_std of Karras et al. 2022)"
    )

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """-2 (mean + std * the normal quantile of u)."""
        return -2 * (self.mean + self.std * normal_quantile(u))

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        return normal_density((logsnr + 2 * self.mean) / (2 * self.std)) / (2 * self.std)


class LogitNormal(Value):
    """logit(t) ~ N(mean, std^2) for flow's t = sigma/(alpha + sigma) (Esser et al. 2024).

    logit(t) is ln(sigma/alpha): this is `lognormal` with the constants of another field, and t before the process's
    logsnr_shift.
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(
        default=0.0,
        description="mean of logit(t), t before the process's logsnr_shift (m of Esser et al. 2024); above 0 is "
        "noisier",
    )
    std: Positive = Field(default=1.0, description="standard deviation of logit(t) (s of Esser et al. 2024)")

    def _twin(self, process: Process) -> LogNormal:
        return LogNormal(mean=self.mean - shift_of(process) / 2, std=self.std)

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        return self._twin(process).logsnr(u, process)

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        return self._twin(process).density(logsnr, process)


class NormalTime(Value):
    """The process's own time, as a fraction of its range, normal and truncated to (0, 1)."""

    kind: Literal["normal_time"] = "normal_time"
    mean: float = Field(
        default=0.5, description="mean of the time before truncation, as a share of its range, 1 the noisy end"
    )
    std: Positive = Field(
        default=0.2, description="standard deviation of the time before truncation, as a share of its range"
    )

    def _ends(self) -> Tensor:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        found: Tensor = torch.special.ndtr((ends - self.mean) / self.std)
        return found

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """The process's draw at the truncated normal's quantile."""
        first, last = self._ends()
        inside = first + u.to(torch.float64) * (last - first)
        return own_time(process).draw((self.mean + self.std * normal_quantile(inside)).clamp(0, 1))

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """The truncated normal's at the process's fraction, times the process's own."""
        first, last = self._ends()
        time = own_time(process).fraction(logsnr)
        density: Tensor = normal_density((time - self.mean) / self.std) / self.std / (last - first)
        return density * own_time(process).draw_density(logsnr)


class BetaTime(Value):
    """1 - the process's own time (a fraction of its range, 1 the noisy end) follows Beta(alpha, beta).

    MixFlow takes Beta(2, 1), which prefers the clean end.
    """

    kind: Literal["beta_time"] = "beta_time"
    alpha: Positive = Field(
        default=2.0, description="alpha of the Beta distribution of 1 - time: the larger, the cleaner"
    )
    beta: Positive = Field(
        default=1.0, description="beta of the Beta distribution of 1 - time: the larger, the noisier"
    )

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """The process's draw at 1 - the quantile of 1 - u."""
        clean = betaincinv(self.alpha, self.beta, 1 - u.to(torch.float64).numpy())
        return own_time(process).draw(1 - torch.as_tensor(clean, dtype=torch.float64))

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """The beta density at 1 - the process's fraction, times the process's own."""
        clean = 1 - own_time(process).fraction(logsnr)
        log = (self.alpha - 1) * clean.log() + (self.beta - 1) * (1 - clean).log()
        whole = math.lgamma(self.alpha + self.beta) - math.lgamma(self.alpha) - math.lgamma(self.beta)
        density: Tensor = torch.exp(log + whole)
        inside = (clean > 0) & (clean < 1)
        return torch.where(inside, density, 0.0) * own_time(process).draw_density(logsnr)


BISECTIONS = 60


class Mode(Value):
    """t = 1 - u - scale (cos^2(pi u/2) - 1 + u) of the process's own time (Esser et al. 2024, eq. 20).

    A positive scale prefers the middle of t, a negative one its ends; between -1 and 2/(pi - 2) t falls with u.
    """

    kind: Literal["mode"] = "mode"
    scale: float = Field(
        default=1.29,
        ge=-1,
        le=2 / (math.pi - 2),
        description="s of Esser et al. 2024, eq. 20: above 0 prefers the middle of t, below 0 its ends; 0 is uniform",
    )

    def _time(self, u: Tensor) -> Tensor:
        return 1 - u - self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """The process's draw at t of 1 - u, so that small u is clean."""
        return own_time(process).draw(self._time(1 - u.to(torch.float64)).clamp(0, 1))

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """1/|dt/du| where t(u) is the process's fraction, found by bisection, times the process's own density."""
        time = own_time(process).fraction(logsnr)
        low, high = torch.zeros_like(time), torch.ones_like(time)  # of u, in which t falls
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            late = self._time(middle) > time
            low, high = torch.where(late, middle, low), torch.where(late, high, middle)
        steepness = 1 + self.scale * (1 - math.pi / 2 * torch.sin(math.pi * (low + high) / 2))
        density: Tensor = own_time(process).draw_density(logsnr) / steepness
        return density


class UniformSigma(Value):
    """sigma/alpha uniform between the process's bounds."""

    kind: Literal["uniform_sigma"] = "uniform_sigma"

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """-2 ln of a uniform sigma/alpha."""
        noisiest, cleanest = _ratios(process)
        return -2 * torch.log(cleanest + u.to(torch.float64) * (noisiest - cleanest))

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """(sigma/alpha)/2 over its range, 0 outside."""
        noisiest, cleanest = _ratios(process)
        return inside(logsnr, process, torch.exp(-logsnr / 2) / 2 / (noisiest - cleanest))


def _ratios(process: Process) -> tuple[float, float]:
    low, high = process.bounds
    return math.exp(-low / 2), math.exp(-high / 2)


def inside(logsnr: Tensor, process: Process, density: Tensor) -> Tensor:
    """`density` between the process's bounds, 0 outside."""
    low, high = process.bounds
    return torch.where((logsnr >= low) & (logsnr <= high), density, 0.0)


class LogUniform(Value):
    """logsnr uniform between the process's bounds: sigma/alpha log-uniform."""

    kind: Literal["loguniform"] = "loguniform"

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """From the upper bound down."""
        low, high = process.bounds
        return high + u.to(torch.float64) * (low - high)

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """1 over the range, 0 outside."""
        low, high = process.bounds
        return inside(logsnr, process, torch.full_like(logsnr, 1 / (high - low)))


Curve = Callable[[Tensor], Tensor]
LEAST = 1e-3  # share of a distribution that must lie within bounds


def truncated_draw(u: Tensor, process: Process, cdf: Curve, quantile: Curve) -> Tensor:
    """The quantile, from the process's upper bound (u = 0) down to its lower one (u = 1)."""
    low, high = (cdf(torch.tensor(end, dtype=torch.float64)) for end in process.bounds)
    if high - low < LEAST:
        raise SnrkitError(f"hardly any of these levels lie between the process's bounds, logsnr {process.bounds}")
    return quantile(high + u.to(torch.float64) * (low - high)).clamp(*process.bounds)


def truncated_density(logsnr: Tensor, process: Process, cdf: Curve, density: Tensor) -> Tensor:
    """`density` renormalised between the process's bounds."""
    low, high = (cdf(torch.tensor(end, dtype=torch.float64)) for end in process.bounds)
    return inside(logsnr, process, density / (high - low))


class Laplace(Value):
    """logsnr follows a Laplace distribution (Hang & Gu 2024: scale 0.5 at 256 pixels, 0.75 at 512)."""

    kind: Literal["laplace"] = "laplace"
    mean: float = Field(default=0.0, description="most likely logsnr, nats (mu of Hang & Gu 2024)")
    scale: Positive = Field(
        default=0.5,
        description="mean distance of logsnr from `mean`, nats, but for the process's bounds (b of Hang & Gu 2024)",
    )

    def _cdf(self, logsnr: Tensor) -> Tensor:
        z = (logsnr - self.mean) / self.scale
        half = torch.exp(-z.abs()) / 2
        return torch.where(z < 0, half, 1 - half)

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """mean + scale sgn(p - 1/2) * -ln(1 - 2|p - 1/2|) at probability p."""

        def quantile(p: Tensor) -> Tensor:
            return self.mean - self.scale * torch.sign(p - 0.5) * torch.log(1 - 2 * (p - 0.5).abs())

        return truncated_draw(u, process, self._cdf, quantile)

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        density = torch.exp(-(logsnr - self.mean).abs() / self.scale) / (2 * self.scale)
        return truncated_density(logsnr, process, self._cdf, density)


class Cauchy(Value):
    """logsnr follows a Cauchy distribution (Hang & Gu 2024)."""

    kind: Literal["cauchy"] = "cauchy"
    mean: float = Field(
        default=0.0, description="most likely logsnr, nats, as a Cauchy distribution has no mean (mu of Hang & Gu 2024)"
    )
    scale: Positive = Field(
        default=1.0,
        description="distance of logsnr from `mean`, nats, at which the density is half as high (gamma of Hang & "
        "Gu 2024)",
    )

    def _cdf(self, logsnr: Tensor) -> Tensor:
        return 0.5 + torch.atan((logsnr - self.mean) / self.scale) / math.pi

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """mean + scale tan(pi (p - 1/2)) at probability p."""
        return truncated_draw(u, process, self._cdf, lambda p: self.mean + self.scale * torch.tan(math.pi * (p - 0.5)))

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """1/(pi scale (1 + z^2))."""
        z = (logsnr - self.mean) / self.scale
        return truncated_density(logsnr, process, self._cdf, 1 / (math.pi * self.scale * (1 + z.square())))


class CosineLevels(Value):
    """logsnr = mean + 2/sharpness * ln cot(pi u/2), the cosine schedule's own at (0, 1) (Hang & Gu 2024)."""

    kind: Literal["cosine"] = "cosine"
    mean: float = Field(default=0.0, description="most likely logsnr, nats; 0 as the cosine schedule has it")
    sharpness: Positive = Field(
        default=1.0, description="factor by which logsnr is closer to `mean` than under the cosine schedule"
    )

    def _cdf(self, logsnr: Tensor) -> Tensor:
        z = self.sharpness * (logsnr - self.mean) / 2
        return 1 - 2 / math.pi * torch.atan(torch.exp(-z))

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """At the probability 1 - u."""

        def quantile(p: Tensor) -> Tensor:
            return self.mean - 2 / self.sharpness * torch.log(torch.tan(math.pi / 2 * (1 - p)))

        return truncated_draw(u, process, self._cdf, quantile)

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """sharpness * sech(sharpness (logsnr - mean)/2)/(2 pi)."""
        z = self.sharpness * (logsnr - self.mean) / 2
        density = self.sharpness / torch.cosh(z) / (2 * math.pi)
        return truncated_density(logsnr, process, self._cdf, density)


AnyLevels = Annotated[
    SpectralLevels
    | UniformTime
    | LogNormal
    | LogitNormal
    | NormalTime
    | BetaTime
    | Mode
    | UniformSigma
    | LogUniform
    | Laplace
    | Cauchy
    | CosineLevels,
    Field(discriminator="kind"),
]
