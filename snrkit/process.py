"""Diffusion processes: how a family of models places noise levels, and the clock that its networks read.

A process fixes the scaling (level.py), the range of levels that were trained, and the bijection between logsnr and the
network's own time. Every other module speaks logsnr; `time` exists only here, in denoisers and in checkpoints.

    kind   scaling   time                          published form
    ddpm   vp or ve  index into the beta table     Ho et al. 2020
    edm    ve        ln(sigma)/4 = -logsnr/8       Karras et al. 2022, table 1
    flow   flow      sigma in [0, 1]               Lipman et al. 2023, Liu et al. 2023
    vp     vp        t in [0, 1], cosine           Nichol & Dhariwal 2021, continuous, truncated (Salimans & Ho 2022)

The promise that the whole package rests on: time(logsnr(k)) == k, exactly for every index of a table (also where the
last entry is -inf, zero terminal SNR) and to 1e-12 for continuous clocks.
"""

import math
from functools import lru_cache
from typing import Annotated, ClassVar, Literal, Protocol, TypeVar

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from snrkit.level import Level, Scaling, level_of
from snrkit.value import Value


class Process(Protocol):
    """What every process answers. All tensors are float64, of any shape."""

    @property
    def scaling(self) -> Scaling:
        """How alpha and sigma follow from logsnr."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and highest finite logsnr that grids span."""

    def level(self, logsnr: Tensor) -> Level:
        """The level at `logsnr`."""

    def time(self, logsnr: Tensor) -> Tensor:
        """What the network reads at `logsnr`."""

    def logsnr(self, time: Tensor) -> Tensor:
        """The inverse of `time`."""

    def snap(self, logsnr: Tensor) -> Tensor:
        """The nearest trained level; the identity for continuous clocks."""

    def sweep(self, u: Tensor) -> Tensor:
        """The logsnr at fraction u of the process's own time, u = 0 at the clean end and 1 at the noisy one."""

    def draw(self, u: Tensor) -> Tensor:
        """The inverse CDF of training levels uniform in the process's own time, u in (0, 1)."""

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """The density over logsnr that `draw` induces."""


class LinearBetas(Value):
    """beta rises linearly (Ho et al. 2020). Ends are taken as given: scale them for other than 1000 steps."""

    kind: Literal["linear"] = "linear"
    start: float = Field(1e-4, gt=0, lt=1)
    end: float = Field(0.02, gt=0, lt=1)

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        return torch.linspace(self.start, self.end, steps, dtype=torch.float64)


class ScaledLinearBetas(Value):
    """The root of beta rises linearly (Rombach et al. 2022)."""

    kind: Literal["scaled_linear"] = "scaled_linear"
    start: float = Field(0.00085, gt=0, lt=1)
    end: float = Field(0.012, gt=0, lt=1)

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        return torch.linspace(self.start**0.5, self.end**0.5, steps, dtype=torch.float64) ** 2


class SquaredCosBetas(Value):
    """alpha-bar follows a squared cosine, each beta capped (Nichol & Dhariwal 2021, eq. 17)."""

    kind: Literal["squaredcos_cap_v2"] = "squaredcos_cap_v2"
    offset: float = Field(0.008, ge=0)
    cap: float = Field(0.999, gt=0, lt=1)

    def betas(self, steps: int) -> Tensor:
        """The betas of steps 1..`steps`, float64 (steps,)."""
        time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        abar = torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=self.cap)


class TrainedBetas(Value):
    """Any table, listed. A last beta of 1 means zero terminal SNR (Lin et al. 2024)."""

    kind: Literal["trained_betas"] = "trained_betas"
    values: tuple[float, ...] = Field(min_length=2)

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


Betas = Annotated[
    LinearBetas | ScaledLinearBetas | SquaredCosBetas | TrainedBetas,
    Field(discriminator="kind"),
]


@lru_cache(maxsize=32)
def logsnr_table(betas: Betas, steps: int, zero_snr: bool = False) -> Tensor:
    """logsnr at every index of a beta table: float64 (steps,), falling; from log(alpha-bar), without cancellation.

    `zero_snr`: r = sqrt(alpha-bar) becomes (r - r_T) r_1/(r_1 - r_T), so that the last entry is pure noise and the
    first stays (Lin et al. 2024, algorithm 1).
    """
    log_abar = torch.cumsum(torch.log1p(-betas.betas(steps)), 0)
    if zero_snr:
        root = torch.exp(log_abar / 2)
        first = root[0].clone()
        log_abar = 2 * torch.log((root - root[-1]) * (first / (first - root[-1])))
        log_abar[0] = 2 * torch.log(first)  # exactly
    return log_abar - torch.log(-torch.expm1(log_abar))


class Ddpm(Value):
    """A table of discrete levels (Ho et al. 2020). Time is the index, 0 the cleanest, interpolated between entries.

    `scaling: ve` keeps the state as x/alpha, the coordinate of k-diffusion and of diffusers' Euler and Heun; the clock
    stays the same table. Levels outside the table read as its nearest end.
    """

    kind: Literal["ddpm"] = "ddpm"
    betas: Betas = LinearBetas()
    steps: int = Field(1000, ge=2)
    scaling: Literal["vp", "ve"] = "vp"
    rescale_betas_zero_snr: bool = Field(False, description="move the table so that its last level is pure noise")

    @model_validator(mode="after")
    def _consistent(self) -> "Ddpm":
        if isinstance(self.betas, TrainedBetas) and len(self.betas.values) != self.steps:
            raise ValueError(f"trained_betas lists {len(self.betas.values)} values, but steps is {self.steps}")
        if self.rescale_betas_zero_snr and not torch.isfinite(logsnr_table(self.betas, self.steps)).all():
            raise ValueError("rescale_betas_zero_snr has no effect, as the table ends at pure noise already")
        if self.scaling == "ve" and not torch.isfinite(self.table()).all():
            raise ValueError("zero terminal SNR has no finite sigma; use scaling: vp")
        return self

    def table(self) -> Tensor:
        """logsnr of every trained index, float64 (steps,), falling."""
        return logsnr_table(self.betas, self.steps, self.rescale_betas_zero_snr)

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and highest finite logsnr of the table."""
        table = self.table()
        return float(table[torch.isfinite(table)][-1]), float(table[0])

    def level(self, logsnr: Tensor) -> Level:
        """The level at `logsnr`, which need not be in the table."""
        return level_of(logsnr, self.scaling)

    def time(self, logsnr: Tensor) -> Tensor:
        """The table index, fractional between entries (linear in logsnr, as k-diffusion), clamped at both ends."""
        table = self.table()
        logsnr = logsnr.to(device="cpu", dtype=torch.float64)
        below = (torch.searchsorted(-table, -logsnr, right=True) - 1).clamp(0, self.steps - 1)
        above = (below + 1).clamp(max=self.steps - 1)
        gap = table[below] - table[above]
        part = torch.where(gap > 0, (table[below] - logsnr).clamp(min=0) / gap, 0.0)
        return below + part.clamp(max=1.0)

    def logsnr(self, time: Tensor) -> Tensor:
        """The logsnr at an index; exact at whole ones."""
        table = self.table()
        time = time.to(device="cpu", dtype=torch.float64).clamp(0, self.steps - 1)
        below = time.floor().long()
        above = (below + 1).clamp(max=self.steps - 1)
        part = time - below
        return torch.where(part == 0, table[below], table[below] + part * (table[above] - table[below]))

    def snap(self, logsnr: Tensor) -> Tensor:
        """The nearest entry of the table."""
        return self.table()[self.time(logsnr).round().long()]

    def sweep(self, u: Tensor) -> Tensor:
        """Uniform in table index, both ends included."""
        return self.logsnr(u.to(torch.float64) * (self.steps - 1))

    def draw(self, u: Tensor) -> Tensor:
        """Each index with the same probability."""
        return self.table()[(u * self.steps).long().clamp(0, self.steps - 1)]

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """1/(steps * width) with width half the distance between the neighbours of the nearest index."""
        table, index = self.table(), self.time(logsnr).round().long()
        before, after = table[(index - 1).clamp(min=0)], table[(index + 1).clamp(max=self.steps - 1)]
        edge = (index == 0) | (index == self.steps - 1)
        return 1 / (self.steps * (before - after) / torch.where(edge, 1.0, 2.0))


class Edm(Value):
    """sigma in the data's own units, no scaling (Karras et al. 2022). Its own time is sigma."""

    kind: Literal["edm"] = "edm"
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    scaling: ClassVar[Scaling] = "ve"

    @model_validator(mode="after")
    def _ordered(self) -> "Edm":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """logsnr at sigma_max and at sigma_min."""
        return -2 * math.log(self.sigma_max), -2 * math.log(self.sigma_min)

    def level(self, logsnr: Tensor) -> Level:
        """The level at `logsnr`."""
        return level_of(logsnr, "ve")

    def time(self, logsnr: Tensor) -> Tensor:
        """ln(sigma)/4, EDM's c_noise."""
        return -logsnr.to(torch.float64) / 8

    def logsnr(self, time: Tensor) -> Tensor:
        """-8 time."""
        return -8 * time.to(torch.float64)

    def snap(self, logsnr: Tensor) -> Tensor:
        """The identity."""
        return logsnr.to(torch.float64)

    def sweep(self, u: Tensor) -> Tensor:
        """Uniform in sigma."""
        return -2 * torch.log(self.sigma_min + u.to(torch.float64) * (self.sigma_max - self.sigma_min))

    def draw(self, u: Tensor) -> Tensor:
        """Uniform in sigma."""
        return self.sweep(u)

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """sigma / (2 (sigma_max - sigma_min)) inside the bounds, 0 outside."""
        low, high = self.bounds
        density = torch.exp(-logsnr / 2) / 2 / (self.sigma_max - self.sigma_min)
        return torch.where((logsnr >= low) & (logsnr <= high), density, 0.0)


class Flow(Value):
    """The straight line x = (1 - t) x0 + t eps (Lipman et al. 2023; Liu et al. 2023). Time is t = sigma.

    Trained on all of (0, 1); `logsnr_min` and `logsnr_max` bound only grids that are laid out in sigma/alpha or in
    logsnr, which is infinite at both ends of t.
    """

    kind: Literal["flow"] = "flow"
    logsnr_min: float = -12.0
    logsnr_max: float = 12.0
    scaling: ClassVar[Scaling] = "flow"

    @model_validator(mode="after")
    def _ordered(self) -> "Flow":
        return _ordered(self)

    @property
    def bounds(self) -> tuple[float, float]:
        """(logsnr_min, logsnr_max)."""
        return self.logsnr_min, self.logsnr_max

    def level(self, logsnr: Tensor) -> Level:
        """The level at `logsnr`; -inf (t = 1) and +inf (t = 0) are allowed."""
        return level_of(logsnr, "flow")

    def time(self, logsnr: Tensor) -> Tensor:
        """t = sigma."""
        return torch.sigmoid(-logsnr.to(torch.float64) / 2)

    def logsnr(self, time: Tensor) -> Tensor:
        """2 ln((1 - t)/t)."""
        time = time.to(torch.float64)
        return 2 * (torch.log1p(-time) - torch.log(time))

    def snap(self, logsnr: Tensor) -> Tensor:
        """The identity."""
        return logsnr.to(torch.float64)

    def sweep(self, u: Tensor) -> Tensor:
        """Uniform in t on [0, 1]."""
        return self.logsnr(u)

    def draw(self, u: Tensor) -> Tensor:
        """Uniform in t."""
        return self.logsnr(u)

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """t (1 - t)/2."""
        return torch.sigmoid(logsnr / 2) * torch.sigmoid(-logsnr / 2) / 2


class Vp(Value):
    """Continuous cosine, logsnr = -2 ln tan(pi t'/2), with t' linear in t and the ends at the given logsnr.

    Nichol & Dhariwal 2021 in continuous time; the truncation is Salimans & Ho 2022's. Time is t in [0, 1].
    """

    kind: Literal["vp"] = "vp"
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0
    scaling: ClassVar[Scaling] = "vp"

    @model_validator(mode="after")
    def _ordered(self) -> "Vp":
        return _ordered(self)

    @property
    def bounds(self) -> tuple[float, float]:
        """(logsnr_min, logsnr_max)."""
        return self.logsnr_min, self.logsnr_max

    def level(self, logsnr: Tensor) -> Level:
        """The level at `logsnr`."""
        return level_of(logsnr, "vp")

    def _ends(self) -> tuple[float, float]:
        return math.atan(math.exp(-self.logsnr_max / 2)), math.atan(math.exp(-self.logsnr_min / 2))

    def time(self, logsnr: Tensor) -> Tensor:
        """t, 0 at logsnr_max and 1 at logsnr_min."""
        first, last = self._ends()
        return (torch.atan(torch.exp(-logsnr.to(torch.float64) / 2)) - first) / (last - first)

    def logsnr(self, time: Tensor) -> Tensor:
        """-2 ln tan of the truncated angle."""
        first, last = self._ends()
        return -2 * torch.log(torch.tan(first + time.to(torch.float64) * (last - first)))

    def snap(self, logsnr: Tensor) -> Tensor:
        """The identity."""
        return logsnr.to(torch.float64)

    def sweep(self, u: Tensor) -> Tensor:
        """Uniform in t."""
        return self.logsnr(u)

    def draw(self, u: Tensor) -> Tensor:
        """Uniform in t."""
        return self.logsnr(u)

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """sech(logsnr/2)/4 over the range of the angle, 0 outside the bounds."""
        first, last = self._ends()
        density = 1 / torch.cosh(logsnr / 2) / 4 / (last - first)
        return torch.where((logsnr >= self.logsnr_min) & (logsnr <= self.logsnr_max), density, 0.0)


P = TypeVar("P", "Flow", "Vp")


def _ordered(process: P) -> P:
    if process.logsnr_min >= process.logsnr_max:
        raise ValueError(f"logsnr_min {process.logsnr_min} must be below logsnr_max {process.logsnr_max}")
    return process


AnyProcess = Annotated[Ddpm | Edm | Flow | Vp, Field(discriminator="kind")]
