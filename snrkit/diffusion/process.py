"""Diffusion processes: how a family of models places noise levels, and the clock that its networks read.

A process fixes the scaling (level.py), the range of levels that were trained, and the bijection between logsnr and the
network's own time. Every other module speaks logsnr; `time` exists only here, in denoisers and in checkpoints.

    kind   scaling   time                          published form
    ddpm   vp or ve  index into the beta table     Ho et al. 2020
    edm    ve        ln(sigma)/4 = -logsnr/8       Karras et al. 2022, table 1
    flow   flow      sigma in [0, 1]               Lipman et al. 2023, Liu et al. 2023
    vp     vp        t in [0, 1], a schedule       Nichol & Dhariwal 2021; Kingma et al. 2021; Hoogeboom et al. 2023
                     or -logsnr/8, as edm          Kingma et al. 2021, whose networks read logsnr

`logsnr_shift` adds a constant to the logsnr of a schedule, and is what the field has three names for: the resolution
shift 2 ln(d/D) of a schedule made for d pixels a side and used at D (Hoogeboom et al. 2023), the input scaling
x = b alpha x0 + sigma eps, 2 ln b (Chen 2023), and the shift s of flow models, t' = s t/(1 + (s-1) t), -2 ln s (Esser
et al. 2024). On `flow` it moves the bounds and what is uniform in t, and not the clock. Levels that are stated as such
(a mean of ln sigma or of logsnr, the ends of a grid) stay where they are stated; logit_normal, which is about t, moves.

The promise that the whole package rests on: time(logsnr(k)) == k, exactly for every index of a table (also where the
last entry is -inf, zero terminal SNR) and to 1e-12 for continuous clocks.

A process is `Process`, six members. To be uniform in the time of its own (level samplers and grids of that name), it
also answers `OwnTime`; one whose schedule is shifted says so as `Shifted`.
"""

import math
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import LONGEST_TABLE, Value
from snrkit.diffusion.betas import Betas, LinearBetas, TrainedBetas, TrainedSigmas, logsnr_table
from snrkit.diffusion.level import Level, Scaling, level_of


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


@runtime_checkable
class OwnTime(Protocol):
    """A time that a process is published in, as a fraction u of its range: a table's index, edm's sigma, t.

    It need not be what the network reads. u = 0 is the clean end, u = 1 the noisy one. All tensors are float64.
    """

    def sweep(self, u: Tensor) -> Tensor:
        """The logsnr at u, both ends included: what a grid visits."""

    def draw(self, u: Tensor) -> Tensor:
        """The inverse CDF of training levels uniform in this time, u in (0, 1)."""

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """The density over logsnr that `draw` induces."""

    def fraction(self, logsnr: Tensor) -> Tensor:
        """The inverse of `draw`: its u at `logsnr`, in the middle of what a table's entry covers."""


def own_time(process: Process) -> OwnTime:
    """The process's own time. SnrkitError where it has none."""
    if isinstance(process, OwnTime):
        return process
    raise SnrkitError(
        f"{type(process).__name__} has no time of its own for levels to be uniform in (sweep, draw, draw_density, "
        "fraction); use levels and grids that are laid out in logsnr or sigma"
    )


@runtime_checkable
class Shifted(Protocol):
    """A process to whose schedule a constant was added."""

    @property
    def logsnr_shift(self) -> float:
        """That constant, nats."""


def shift_of(process: Process) -> float:
    """What was added to the process's schedule, nats; 0 where it has no shift."""
    return process.logsnr_shift if isinstance(process, Shifted) else 0.0


class Ddpm(Value):
    """A table of discrete levels (Ho et al. 2020). Time is the index, 0 the cleanest, interpolated between entries.

    `scaling: ve` keeps the state as x/alpha, the coordinate of k-diffusion and of diffusers' Euler and Heun; the clock
    stays the same table. Levels outside the table read as its nearest end.
    """

    kind: Literal["ddpm"] = "ddpm"
    betas: Betas = Field(default=LinearBetas(), description="what the table of levels is made of")
    steps: int = Field(default=1000, ge=2, le=LONGEST_TABLE, description="entries of the table")
    scaling: Literal["vp", "ve"] = Field(
        default="vp", description="vp: states are alpha x0 + sigma eps with alpha^2 + sigma^2 = 1; ve: these over alpha"
    )
    rescale_betas_zero_snr: bool = Field(
        default=False, description="move the table so that its last level is pure noise"
    )
    logsnr_shift: float = Field(default=0.0, ge=-30, le=30, description="added to every entry of the table, nats")

    @model_validator(mode="after")
    def _consistent(self) -> "Ddpm":
        if isinstance(self.betas, TrainedBetas | TrainedSigmas) and len(self.betas.values) != self.steps:
            raise ValueError(f"{self.betas.kind} lists {len(self.betas.values)} values, but steps is {self.steps}")
        if self.rescale_betas_zero_snr and not torch.isfinite(logsnr_table(self.betas, self.steps)).all():
            raise ValueError("rescale_betas_zero_snr has no effect, as the table ends at pure noise already")
        if self.scaling == "ve" and not torch.isfinite(self.table()).all():
            raise ValueError("zero terminal SNR has no finite sigma; use scaling: vp")
        return self

    def table(self) -> Tensor:
        """logsnr of every trained index, float64 (steps,), falling."""
        return logsnr_table(self.betas, self.steps, self.rescale_betas_zero_snr) + self.logsnr_shift

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
        """The logsnr at an index; exact at whole ones, NaN of NaN, as of every process."""
        table = self.table()
        told = time.to(device="cpu", dtype=torch.float64)
        time = told.nan_to_num(0).clamp(0, self.steps - 1)
        below = time.floor().long()
        above = (below + 1).clamp(max=self.steps - 1)
        part = time - below
        found = torch.where(part == 0, table[below], table[below] + part * (table[above] - table[below]))
        return found.masked_fill(told.isnan(), torch.nan)

    def snap(self, logsnr: Tensor) -> Tensor:
        """The nearest entry of the table, in logsnr unless it is one of sigmas."""
        if isinstance(self.betas, TrainedSigmas):
            return self.table()[self.betas.nearest(logsnr - self.logsnr_shift)]
        return self.table()[self.time(logsnr).round().long()]

    def sweep(self, u: Tensor) -> Tensor:
        """Uniform in table index, both ends included."""
        return self.logsnr(u.to(torch.float64) * (self.steps - 1))

    def draw(self, u: Tensor) -> Tensor:
        """Each index with the same probability."""
        return self.table()[(u * self.steps).long().clamp(0, self.steps - 1)]

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """1/(steps * width) with width half the distance between the neighbours of the nearest index.

        The first and the last entry reach as far out as in; 0 beyond.
        """
        logsnr = logsnr.to(device="cpu", dtype=torch.float64)
        table, index = self.table(), self.time(logsnr).round().long()
        before, after = table[(index - 1).clamp(min=0)], table[(index + 1).clamp(max=self.steps - 1)]
        edge = (index == 0) | (index == self.steps - 1)
        density = 1 / (self.steps * (before - after) / torch.where(edge, 1.0, 2.0))
        highest, lowest = table[0] + (table[0] - table[1]) / 2, table[-1] - (table[-2] - table[-1]) / 2
        return torch.where((logsnr <= highest) & (logsnr >= lowest), density, 0.0)

    def fraction(self, logsnr: Tensor) -> Tensor:
        """(index + 1/2)/steps of the nearest index."""
        return (self.time(logsnr).round() + 0.5) / self.steps


class Edm(Value):
    """sigma in the data's own units, no scaling (Karras et al. 2022).

    Levels and grids that are uniform in its own time (`OwnTime`) are uniform in sigma; what the network reads, `time`,
    is EDM's c_noise = ln(sigma)/4.
    """

    kind: Literal["edm"] = "edm"
    sigma_min: float = Field(
        default=0.002,
        gt=0,
        description="noise of the cleanest level of grids and bounded level samplers, pixels in [-1, 1]",
    )
    sigma_max: float = Field(
        default=80.0,
        gt=0,
        description="noise of the noisiest level of grids and bounded level samplers, pixels in [-1, 1]",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Edm":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self

    @property
    def scaling(self) -> Scaling:
        """The state is x0 + sigma eps."""
        return "ve"

    @property
    def bounds(self) -> tuple[float, float]:
        """logsnr at sigma_max and at sigma_min."""
        return -2 * math.log(self.sigma_max), -2 * math.log(self.sigma_min)

    def level(self, logsnr: Tensor) -> Level:
        """The level at `logsnr`."""
        return level_of(logsnr, "ve")

    def time(self, logsnr: Tensor) -> Tensor:
        return -logsnr.to(torch.float64) / 8

    def logsnr(self, time: Tensor) -> Tensor:
        return -8 * time.to(torch.float64)

    def snap(self, logsnr: Tensor) -> Tensor:
        return logsnr.to(torch.float64)

    def sweep(self, u: Tensor) -> Tensor:
        return -2 * torch.log(self.sigma_min + u.to(torch.float64) * (self.sigma_max - self.sigma_min))

    def draw(self, u: Tensor) -> Tensor:
        return self.sweep(u)

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """sigma / (2 (sigma_max - sigma_min)) inside the bounds, 0 outside."""
        low, high = self.bounds
        density = torch.exp(-logsnr / 2) / 2 / (self.sigma_max - self.sigma_min)
        return torch.where((logsnr >= low) & (logsnr <= high), density, 0.0)

    def fraction(self, logsnr: Tensor) -> Tensor:
        """The fraction of sigma's range."""
        return (torch.exp(-logsnr / 2) - self.sigma_min) / (self.sigma_max - self.sigma_min)


class Flow(Value):
    """The straight line x = (1 - t) x0 + t eps (Lipman et al. 2023; Liu et al. 2023). Time is t = sigma.

    Trained on all of (0, 1); `logsnr_min` and `logsnr_max` bound only grids and level samplers that are laid out in
    sigma/alpha or in logsnr, which is infinite at both ends of t.
    """

    kind: Literal["flow"] = "flow"
    logsnr_min: float = Field(
        default=-12.0,
        description="noisiest level of what is laid out in sigma/alpha or logsnr, before logsnr_shift, nats",
    )
    logsnr_max: float = Field(
        default=12.0,
        description="cleanest level of what is laid out in sigma/alpha or logsnr, before logsnr_shift, nats",
    )
    logsnr_shift: float = Field(
        default=0.0, description="added to the bounds and to levels uniform in t, nats: -2 ln of `shift`"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Flow":
        _check_order(self.logsnr_min, self.logsnr_max)
        return self

    @property
    def scaling(self) -> Scaling:
        """The state is (1 - t) x0 + t eps."""
        return "flow"

    @property
    def bounds(self) -> tuple[float, float]:
        return self.logsnr_min + self.logsnr_shift, self.logsnr_max + self.logsnr_shift

    def level(self, logsnr: Tensor) -> Level:
        """The level at `logsnr`; -inf (t = 1) and +inf (t = 0) are allowed."""
        return level_of(logsnr, "flow")

    def time(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr.to(torch.float64) / 2)

    def logsnr(self, time: Tensor) -> Tensor:
        """2 ln((1 - t)/t)."""
        time = time.to(torch.float64)
        return 2 * (torch.log1p(-time) - torch.log(time))

    def snap(self, logsnr: Tensor) -> Tensor:
        return logsnr.to(torch.float64)

    def sweep(self, u: Tensor) -> Tensor:
        """Uniform in t on [0, 1], then shifted."""
        return self.logsnr(u) + self.logsnr_shift

    def draw(self, u: Tensor) -> Tensor:
        """Uniform in t, then shifted."""
        return self.sweep(u)

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """t (1 - t)/2 at the t before the shift."""
        plain = (logsnr - self.logsnr_shift) / 2
        return torch.sigmoid(plain) * torch.sigmoid(-plain) / 2

    def fraction(self, logsnr: Tensor) -> Tensor:
        """The t before the shift."""
        return self.time(logsnr - self.logsnr_shift)


class Schedule(Protocol):
    """A continuous curve of logsnr over t in [0, 1], falling from `high` at 0 to `low` at 1 but for its own shifts."""

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """logsnr at t = 1 and at t = 0."""

    def logsnr(self, time: Tensor, low: float, high: float) -> Tensor:
        """The curve."""

    def slope(self, time: Tensor, low: float, high: float) -> Tensor:
        """Its derivative in t, below 0."""

    def time(self, logsnr: Tensor, low: float, high: float) -> Tensor:
        """Its inverse."""


def _angles(low: float, high: float) -> tuple[float, float]:
    """atan(sigma/alpha) at the clean and at the noisy end."""
    return math.atan(math.exp(-high / 2)), math.atan(math.exp(-low / 2))


class Cosine(Value):
    """-2 ln tan of an angle that grows evenly between the ends (Nichol & Dhariwal 2021; Salimans & Ho 2022)."""

    kind: Literal["cosine"] = "cosine"

    def ends(self, low: float, high: float) -> tuple[float, float]:
        return low, high

    def logsnr(self, time: Tensor, low: float, high: float) -> Tensor:
        """-2 ln tan of the truncated angle."""
        first, last = _angles(low, high)
        return -2 * torch.log(torch.tan(first + time * (last - first)))

    def slope(self, time: Tensor, low: float, high: float) -> Tensor:
        """-4 (last - first)/sin of twice the angle."""
        first, last = _angles(low, high)
        return -4 * (last - first) / torch.sin(2 * (first + time * (last - first)))

    def time(self, logsnr: Tensor, low: float, high: float) -> Tensor:
        first, last = _angles(low, high)
        return (torch.atan(torch.exp(-logsnr / 2)) - first) / (last - first)


NEWTON = 60  # at most; quadratic near the solution, halving the bracket elsewhere
SETTLED = 1e-13  # a step of t after which nothing more is gained


class InterpolatedCosine(Value):
    """Cosine, shifted by `clean` nats at t = 0 and by `noisy` at t = 1, linearly between (Hoogeboom et al. 2023).

    For D pixels a side and references d: clean 2 ln(d_high/D), noisy 2 ln(d_low/D), d_low below d_high: extra noise for
    global structure, an ordinary schedule for detail. Some code has the two ends the other way round.
    """

    kind: Literal["cosine_interpolated"] = "cosine_interpolated"
    clean: float = Field(
        default=0.0, description="added to the cosine's logsnr at t = 0, nats, and linearly less towards t = 1"
    )
    noisy: float = Field(
        default=0.0, description="added to the cosine's logsnr at t = 1, nats, and linearly less towards t = 0"
    )

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """Each with its own shift."""
        return low + self.noisy, high + self.clean

    def logsnr(self, time: Tensor, low: float, high: float) -> Tensor:
        """cosine(t) + (1 - t) clean + t noisy."""
        return Cosine().logsnr(time, low, high) + (1 - time) * self.clean + time * self.noisy

    def slope(self, time: Tensor, low: float, high: float) -> Tensor:
        """The cosine's, and the difference of the shifts."""
        return Cosine().slope(time, low, high) + (self.noisy - self.clean)

    def time(self, logsnr: Tensor, low: float, high: float) -> Tensor:
        """By Newton's method inside a shrinking bracket, to 1e-14."""
        left, right = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        time = Cosine().time(logsnr - (self.clean + self.noisy) / 2, low, high).clamp(1e-9, 1 - 1e-9)
        for _ in range(NEWTON):
            error = self.logsnr(time, low, high) - logsnr
            left, right = torch.where(error > 0, time, left), torch.where(error > 0, right, time)
            newton = time - error / self.slope(time, low, high)
            moved = torch.where((newton > left) & (newton < right), newton, (left + right) / 2)
            done, time = bool(((moved - time).abs() < SETTLED).all()), moved
            if done:
                break
        return time


class LinearLogsnr(Value):
    """logsnr falls evenly (Kingma et al. 2021, whose fixed schedule runs from 13.3 to -5)."""

    kind: Literal["linear_logsnr"] = "linear_logsnr"

    def ends(self, low: float, high: float) -> tuple[float, float]:
        return low, high

    def logsnr(self, time: Tensor, low: float, high: float) -> Tensor:
        """high + t (low - high)."""
        return high + time * (low - high)

    def slope(self, time: Tensor, low: float, high: float) -> Tensor:
        return torch.full_like(time, low - high)

    def time(self, logsnr: Tensor, low: float, high: float) -> Tensor:
        """The fraction of the way."""
        return (logsnr - high) / (low - high)


AnySchedule = Annotated[Cosine | InterpolatedCosine | LinearLogsnr, Field(discriminator="kind")]


class Vp(Value):
    """A schedule over t in [0, 1] between logsnr_max and logsnr_min, which then shifts.

    The network reads t, which hardly changes over the levels where the schedule is steep, or -logsnr/8 (`clock:
    logsnr`), which tells all levels alike.
    """

    kind: Literal["vp"] = "vp"
    schedule: AnySchedule = Field(default=Cosine(), description="curve of logsnr over t")
    clock: Literal["t", "logsnr"] = Field(default="t", description="what the network reads of the level")
    logsnr_min: float = Field(default=-15.0, description="logsnr at t = 1, the noisy end, before any shift, nats")
    logsnr_max: float = Field(default=15.0, description="logsnr at t = 0, the clean end, before any shift, nats")
    logsnr_shift: float = Field(default=0.0, ge=-30, le=30, description="added at every t, nats; the ends move too")

    @model_validator(mode="after")
    def _ordered(self) -> "Vp":
        _check_order(self.logsnr_min, self.logsnr_max)
        times = torch.linspace(0, 1, 1025, dtype=torch.float64)
        if not (self.schedule.slope(times, self.logsnr_min, self.logsnr_max) < 0).all():
            raise ValueError("logsnr would rise with t somewhere; bring the schedule's ends nearer to each other")
        return self

    @property
    def scaling(self) -> Scaling:
        """The state has alpha^2 + sigma^2 = 1."""
        return "vp"

    @property
    def bounds(self) -> tuple[float, float]:
        """logsnr at t = 1 and at t = 0."""
        low, high = self.schedule.ends(self.logsnr_min, self.logsnr_max)
        return low + self.logsnr_shift, high + self.logsnr_shift

    def level(self, logsnr: Tensor) -> Level:
        """The level at `logsnr`."""
        return level_of(logsnr, "vp")

    def time(self, logsnr: Tensor) -> Tensor:
        """t, 0 at the clean end and 1 at the noisy one; or -logsnr/8."""
        return self.fraction(logsnr) if self.clock == "t" else -logsnr.to(torch.float64) / 8

    def logsnr(self, time: Tensor) -> Tensor:
        """The schedule, shifted; or -8 times the time."""
        return self.sweep(time) if self.clock == "t" else -8 * time.to(torch.float64)

    def snap(self, logsnr: Tensor) -> Tensor:
        return logsnr.to(torch.float64)

    def sweep(self, u: Tensor) -> Tensor:
        return self.schedule.logsnr(u.to(torch.float64), self.logsnr_min, self.logsnr_max) + self.logsnr_shift

    def draw(self, u: Tensor) -> Tensor:
        return self.sweep(u)

    def draw_density(self, logsnr: Tensor) -> Tensor:
        """1 over the steepness of the schedule, 0 outside the bounds."""
        low, high = self.bounds
        time = self.fraction(logsnr.clamp(low, high))
        density = -1 / self.schedule.slope(time, self.logsnr_min, self.logsnr_max)
        return torch.where((logsnr >= low) & (logsnr <= high), density, 0.0)

    def fraction(self, logsnr: Tensor) -> Tensor:
        plain = logsnr.to(torch.float64) - self.logsnr_shift
        return self.schedule.time(plain, self.logsnr_min, self.logsnr_max)


def _check_order(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"logsnr_min {low} must be below logsnr_max {high}")


AnyProcess = Annotated[Ddpm | Edm | Flow | Vp, Field(discriminator="kind")]
