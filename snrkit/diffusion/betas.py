"""Tables of discrete noise levels, each made of betas or of alpha-bar, and their logsnr.

The words of the field are ambiguous, so each kind here is one curve: `sigmoid_beta` bends beta, `sigmoid` bends
alpha-bar; `geometric` is what is also called an exponential beta, while diffusers' `exp` is a constant beta and
`exponential` a grid of sigmas.
"""

import math
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from snrkit.base.value import LONGEST_TABLE, Value

Unit = Annotated[float, Field(gt=0, lt=1)]


class LinearBetas(Value):
    """beta rises linearly (Ho et al. 2020). Ends are taken as given: scale them for other than 1000 steps."""

    kind: Literal["linear"] = "linear"
    start: Unit = Field(default=1e-4, description="beta of the cleanest entry of the table")
    end: Unit = Field(default=0.02, description="beta of the noisiest entry of the table")

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        return torch.linspace(self.start, self.end, steps, dtype=torch.float64)


class ScaledLinearBetas(Value):
    """The root of beta rises linearly (Rombach et al. 2022). With these ends abar stops at 0.0047."""

    kind: Literal["scaled_linear"] = "scaled_linear"
    start: Unit = Field(default=0.00085, description="beta of the cleanest entry of the table")
    end: Unit = Field(default=0.012, description="beta of the noisiest entry of the table")

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        return torch.linspace(self.start**0.5, self.end**0.5, steps, dtype=torch.float64) ** 2


class GeometricBetas(Value):
    """beta rises by a constant factor, the "exponential" beta. With these ends alpha-bar stops at 0.023.

    No usable last level: raise `end`, or move it by the process's rescale_betas_zero_snr.
    """

    kind: Literal["geometric"] = "geometric"
    start: Unit = Field(default=1e-4, description="beta of the cleanest entry of the table")
    end: Unit = Field(default=0.02, description="beta of the noisiest entry of the table")

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        return torch.linspace(math.log(self.start), math.log(self.end), steps, dtype=torch.float64).exp()


class SigmoidBetas(Value):
    """beta follows a logistic curve over (-6, 6) (Xu et al. 2022, GeoDiff; `sigmoid` in diffusers)."""

    kind: Literal["sigmoid_beta"] = "sigmoid_beta"
    start: Unit = Field(default=1e-4, description="beta that the logistic curve comes from, at the clean end")
    end: Unit = Field(default=0.02, description="beta that the logistic curve goes to, at the noisy end")

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        curve = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
        return curve * (self.end - self.start) + self.start


def of_alpha_bar(abar: Tensor, cap: float) -> Tensor:
    """The betas (T,) of alpha-bar (T + 1,) at 0, 1/T, ..., 1, each at most `cap` (Nichol & Dhariwal 2021, eq. 17)."""
    return (1 - abar[1:] / abar[:-1]).clamp(max=cap)


def _times(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


class SquaredCosBetas(Value):
    """alpha-bar follows a squared cosine, each beta capped (Nichol & Dhariwal 2021, eq. 17)."""

    kind: Literal["squaredcos_cap_v2"] = "squaredcos_cap_v2"
    offset: float = Field(
        default=0.008,
        ge=0,
        description="s of Nichol & Dhariwal 2021, eq. 17: keeps beta from being tiny at the clean end",
    )
    cap: Unit = Field(default=0.999, description="largest beta of the table")

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        angle = (_times(steps) + self.offset) / (1 + self.offset) * math.pi / 2
        return of_alpha_bar(torch.cos(angle) ** 2, self.cap)


class SigmoidAlphaBar(Value):
    """alpha-bar follows a logistic curve from 1 to 0 (Jabri et al. 2023; Chen 2023)."""

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = Field(
        default=-3.0,
        description="argument of the logistic curve at the clean end, before it is divided by tau (Jabri et al. 2023)",
    )
    end: float = Field(
        default=3.0,
        description="argument of the logistic curve at the noisy end, before it is divided by tau (Jabri et al. 2023)",
    )
    tau: float = Field(
        default=1.0,
        gt=0,
        description="tau of Jabri et al. 2023: what the argument is divided by; the smaller, the steeper "
        "alpha-bar falls",
    )
    cap: Unit = Field(default=0.999, description="largest beta of the table")

    @model_validator(mode="after")
    def _ordered(self) -> "SigmoidAlphaBar":
        if self.start >= self.end:
            raise ValueError(f"start {self.start} must be below end {self.end}")
        return self

    def alpha_bar(self, time: Tensor) -> Tensor:
        """1 at time 0 and 0 at time 1, any shape."""
        first, last = (torch.sigmoid(torch.tensor(v / self.tau, dtype=torch.float64)) for v in (self.start, self.end))
        here = torch.sigmoid((time * (self.end - self.start) + self.start) / self.tau)
        return (last - here) / (last - first)

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        return of_alpha_bar(self.alpha_bar(_times(steps)), self.cap)


class LaplaceAlphaBar(Value):
    """logsnr spread as a Laplace distribution, mean - scale * sgn(1/2 - t) ln(1 - 2|t - 1/2|) (Hang & Gu 2024).

    diffusers' `laplace` returns the root of alpha-bar in its place: 0.707 where 0.5 is meant.
    """

    kind: Literal["laplace"] = "laplace"
    mean: float = Field(default=0.0, description="logsnr in the middle of the table, nats (mu of Hang & Gu 2024)")
    scale: float = Field(
        default=0.5, gt=0, description="mean distance of logsnr from its middle, nats (b of Hang & Gu 2024)"
    )
    cap: Unit = Field(default=0.999, description="largest beta of the table")

    def alpha_bar(self, time: Tensor) -> Tensor:
        """sigmoid of logsnr: 1 at time 0 and 0 at time 1, any shape."""
        side = torch.sign(0.5 - time)
        return torch.sigmoid(self.mean - self.scale * side * torch.log(1 - 2 * (time - 0.5).abs()))

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        return of_alpha_bar(self.alpha_bar(_times(steps)), self.cap)


class TrainedBetas(Value):
    """Any table, listed. A last beta of 1 means zero terminal SNR (Lin et al. 2024)."""

    kind: Literal["trained_betas"] = "trained_betas"
    values: tuple[float, ...] = Field(
        min_length=2, max_length=LONGEST_TABLE, description="beta of each entry of the table, the cleanest first"
    )

    @field_validator("values")
    @classmethod
    def _in_range(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        inside = all(0 < beta < 1 for beta in values[:-1]) and 0 < values[-1] <= 1
        if not inside:
            raise ValueError("betas must lie in (0, 1); only the last may be 1")
        return values

    def betas(self, steps: int) -> Tensor:
        """The listed betas, float64 (steps,)."""
        return torch.tensor(self.values, dtype=torch.float64)


class TrainedSigmas(Value):
    """Any table, listed as sigma/alpha from the cleanest level on; levels snap to the nearest sigma (EDM's iDDPM)."""

    kind: Literal["trained_sigmas"] = "trained_sigmas"
    values: tuple[float, ...] = Field(
        min_length=2, max_length=LONGEST_TABLE, description="sigma/alpha of each entry of the table, the cleanest first"
    )

    @field_validator("values")
    @classmethod
    def _rising(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values[0] > 0 or not all(a < b for a, b in pairwise(values)):
            raise ValueError("sigmas must rise from above 0")
        return values

    def betas(self, steps: int) -> Tensor:
        """The betas of the listed sigmas, float64 (steps,)."""
        sigma = torch.tensor(self.values, dtype=torch.float64)
        return -torch.expm1(torch.diff(-torch.log1p(sigma**2), prepend=sigma.new_zeros(1)))

    def nearest(self, logsnr: Tensor) -> Tensor:
        """The index of the listed sigma next to that of `logsnr`, any shape."""
        sigma = torch.tensor(self.values, dtype=torch.float64)
        return torch.searchsorted((sigma[1:] + sigma[:-1]) / 2, torch.exp(-logsnr.to("cpu", torch.float64) / 2))


Betas = Annotated[
    LinearBetas
    | ScaledLinearBetas
    | SquaredCosBetas
    | GeometricBetas
    | SigmoidBetas
    | SigmoidAlphaBar
    | LaplaceAlphaBar
    | TrainedBetas
    | TrainedSigmas,
    Field(discriminator="kind"),
]


@lru_cache(maxsize=32)
def logsnr_table(betas: Betas, steps: int, zero_snr: bool = False) -> Tensor:
    """logsnr at every index of a beta table: float64 (steps,), falling; from log(alpha-bar), without cancellation.

    `zero_snr`: r = sqrt(alpha-bar) becomes (r - r_T) r_1/(r_1 - r_T), so that the last entry is pure noise and the
    first stays (Lin et al. 2024, algorithm 1). The rule beta' = beta (1 - abar_1)/(1 - abar_T), found in some posts,
    all but removes the noise instead.
    """
    log_abar = torch.cumsum(torch.log1p(-betas.betas(steps)), 0)
    if zero_snr:
        root = torch.exp(log_abar / 2)
        first = root[0].clone()
        log_abar = 2 * torch.log((root - root[-1]) * (first / (first - root[-1])))
        log_abar[0] = 2 * torch.log(first)  # exactly
    return log_abar - torch.log(-torch.expm1(log_abar))
