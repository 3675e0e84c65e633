"""What is learned and where: level samplers, weightings, and the loss.

A weighting is written once, for the squared error of eps, and the loss is computed on the network's own output F:

    loss = weight_F |F - F*|^2,    F* = (y - c_skip x)/c_out,
    weight_F = w_eps * c_out^2 alpha^2/(alpha*b - sigma*a)^2       (with EDM's preconditioning: w_eps alpha^2 s^2/d)

computed in float64 at max(logsnr, -40), so that a v-loss stays 1 and a min-SNR weight becomes 0 at zero terminal SNR.
Density and weight act as one product in the expected loss (Kingma & Gao 2023).
"""

import math
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from snrkit.denoiser import Precondition
from snrkit.level import Level
from snrkit.prediction import Target
from snrkit.process import Process
from snrkit.value import Value


class LevelSampler(Protocol):
    """Where training looks: a density over logsnr, given as an inverse CDF of uniforms."""

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """logsnr (B,) of stratified uniforms u (B,) in (0, 1); snapped to the process's table by the caller."""

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """p(logsnr), which integrates to 1."""


class UniformTime(Value):
    """Uniform in the process's own time: index (ddpm), t (flow, vp), sigma (edm)."""

    kind: Literal["uniform_time"] = "uniform_time"

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """The process's own draw."""
        return process.draw(u)

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """The process's own density."""
        return process.draw_density(logsnr)


class LogNormal(Value):
    """ln(sigma/alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1); logsnr ~ N(-2 mean, (2 std)^2).

    On a process with a table, draws beyond its ends fall on the ends.
    """

    kind: Literal["lognormal"] = "lognormal"
    mean: float = -1.2
    std: float = Field(1.2, gt=0)

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """-2 (mean + std * the normal quantile of u)."""
        normal: Tensor = torch.special.ndtri(u.to(torch.float64))
        return -2 * (self.mean + self.std * normal)

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """The normal density."""
        z: Tensor = (logsnr + 2 * self.mean) / (2 * self.std)
        density: Tensor = (-z.square() / 2).exp() / (2 * self.std * (2 * math.pi) ** 0.5)
        return density


AnyLevelSampler = Annotated[UniformTime | LogNormal, Field(discriminator="kind")]


class Weighting(Protocol):
    """How much each level counts."""

    def weight(self, level: Level, density: Tensor, sigma_data: float) -> Tensor:
        """The factor (B,) of the squared error in eps space, given the level sampler's density there."""


class Simple(Value):
    """1 on eps (Ho et al. 2020, eq. 14)."""

    kind: Literal["simple"] = "simple"

    def weight(self, level: Level, density: Tensor, sigma_data: float) -> Tensor:
        """1."""
        return torch.ones_like(level.logsnr)


class EdmWeighting(Value):
    """1 on the output of an EDM-preconditioned network (Karras et al. 2022): 1 + sigma^2/(alpha^2 s^2) on eps."""

    kind: Literal["edm"] = "edm"

    def weight(self, level: Level, density: Tensor, sigma_data: float) -> Tensor:
        """1 + exp(-logsnr)/sigma_data^2."""
        return 1 + torch.exp(-level.logsnr) / sigma_data**2


class MinSnr(Value):
    """min(snr, gamma) on x0 (Hang et al. 2023), stated on eps."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)

    def weight(self, level: Level, density: Tensor, sigma_data: float) -> Tensor:
        """min(1, gamma/snr)."""
        return torch.clamp(self.gamma * torch.exp(-level.logsnr), max=1)


AnyWeighting = Annotated[Simple | EdmWeighting | MinSnr, Field(discriminator="kind")]

LOWEST_LOGSNR = -40.0


def output_weight(
    level: Level,
    density: Tensor,
    *,
    process: Process,
    target: Target,
    precondition: Precondition,
    weighting: Weighting,
    sigma_data: float,
) -> Tensor:
    """weight_F (B,): the factor of the squared error of the network's own output, float64."""
    safe = process.level(level.logsnr.clamp(min=LOWEST_LOGSNR))
    a, b = target.direction(safe)
    c_out = precondition.coefficients(safe, target, process.scaling, sigma_data).c_out
    to_output = (c_out * safe.alpha / (safe.alpha * b - safe.sigma * a)) ** 2
    return weighting.weight(safe, density, sigma_data) * to_output
