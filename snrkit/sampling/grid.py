"""Sampling grids: which levels a sampler visits.

A grid is a list of n levels of rising logsnr, followed by the clean level sigma = 0: n steps, n + 1 levels. It snaps to
the process's table where there is one; a grid whose levels repeat after that is refused. Grids are computed in float64
with exp and log.

A grid whose levels follow from the images (`ImageGrid`) cannot be laid out by itself: whoever knows the images makes a
`Placement` of it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import LONGEST_TABLE, Steps, Value
from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Ddpm, Process, own_time
from snrkit.spectral.grid import SpectralGrid
from snrkit.spectral.spectra import Scope

Told = Scope  # whose power spectrum a network is told of
Listing = Annotated[tuple[float, ...], Field(min_length=1, max_length=10_000)]


class Grid(Protocol):
    """A rule that places the levels of a sampler, the same for all images."""

    @property
    def steps(self) -> int:
        """The number of steps."""

    def levels(self, process: Process) -> tuple[Level, ...]:
        """`steps` + 1 snapped levels of shape (), rising, no repeats; the last is clean."""


class Placement(Protocol):
    """What of a sampler is each image's own: the levels that it visits, what the network is told beside them, or both.

    Images are given by their seeds (B) and labels (B,), -1 or None for none. `own` is what `follows` gave of images
    that exist; where it is not given it is drawn, by a stream of each seed.
    """

    @property
    def varies(self) -> bool:
        """Whether the levels differ from image to image; else only what the network is told."""

    @property
    def key(self) -> object:
        """Hashable; equal for placements of one run that visit equal levels and tell the network the same."""

    def typical(self) -> tuple[Level, ...]:
        """The levels that stand for all images: as Grid.levels, or (1,) where they vary."""

    def levels(self, seeds: Sequence[int], labels: Tensor | None, own: Tensor | None = None) -> tuple[Level, ...]:
        """`steps` + 1 snapped levels (B,), rising, no repeats; the last is clean."""

    def told(self, seeds: Sequence[int], labels: Tensor | None, own: Tensor | None = None) -> Tensor | None:
        """What the network is told (B, S) as `Cond.scalars`; None for nothing."""

    def follows(self, x0: Tensor) -> Tensor:
        """What levels, and what the network is told, follow of images x0 (B, C, H, W)."""


@runtime_checkable
class ImageGrid(Protocol):
    """A rule that places levels by what is known of the images.

    `levels` are those of the training, as its experiment has them; None where they are not known.
    """

    @property
    def kind(self) -> str:
        """Its name in an experiment."""

    @property
    def steps(self) -> int:
        """The number of steps."""

    def check(self, shape: tuple[int, int, int]) -> None:
        """SnrkitError where images of this shape (C, H, W) have no such levels."""

    def faults(self, classes: int, scalars: Sequence[str]) -> Iterable[str]:
        """What it asks that a network of these classes and scalars does not have, as `option: sentence`."""

    def scope_under(self, levels: object) -> str:
        """As `scope_of`."""

    def made_up(self, process: Process, levels: object) -> Placement:
        """A placement for images that do not exist, of which only the steps are right: for dry runs."""


def scope_of(grid: Grid | ImageGrid, levels: object) -> str:
    """Whose levels a grid visits after training at `levels`: instance, the image's own; class, its class's; dataset."""
    return grid.scope_under(levels) if isinstance(grid, ImageGrid) else "dataset"


def finish(process: Process, place: Callable[[int], Tensor], steps: int) -> tuple[Level, ...]:
    """Snap the logsnr that `place(steps)` gives, refuse repeats, append the clean level."""
    logsnr = process.snap(place(steps))
    if not _rises(logsnr):
        fits = next(n for n in range(steps - 1, 0, -1) if _rises(process.snap(place(n))))
        raise SnrkitError(
            f"a grid of {steps} steps repeats levels after snapping to the process's table; at most {fits} steps fit"
        )
    clean = torch.tensor(math.inf, dtype=torch.float64)
    return tuple(process.level(value) for value in (*logsnr.unbind(), clean))


def _rises(logsnr: Tensor) -> bool:
    return bool((logsnr[1:] > logsnr[:-1]).all())


def _fractions(steps: int, first: float, last: float) -> Tensor:
    return torch.linspace(first, last, steps, dtype=torch.float64)


def _sigma_ends(kind: str, largest: float | None, least: float | None, process: Process) -> tuple[float, float]:
    """(sigma/alpha of the first level, of the last noisy one): those that are given, else the process's bounds."""
    low, high = process.bounds
    noisiest = math.exp(-low / 2) if largest is None else largest
    cleanest = math.exp(-high / 2) if least is None else least
    if cleanest >= noisiest:
        raise SnrkitError(f"{kind}: sigma_min {cleanest:g} must be below sigma_max {noisiest:g}")
    return noisiest, cleanest


def _table_size(kind: str, steps: int, process: Process) -> int:
    if not isinstance(process, Ddpm):
        raise SnrkitError(f"grid {kind} needs a process with a table (ddpm); use uniform_time")
    if steps > process.steps:
        raise SnrkitError(f"a grid of {steps} steps does not fit a table of {process.steps} levels")
    return process.steps


class Karras(Value):
    """sigma/alpha follows the rho-power grid between the process's bounds (Karras et al. 2022, eq. 5)."""

    kind: Literal["karras"] = "karras"
    steps: Steps = Field(default=18, description="number of steps, the last of which ends at the clean level")
    rho: float = Field(
        default=7.0,
        gt=0,
        description="rho of Karras et al. 2022, eq. 5: the larger, the closer the levels at the clean end",
    )
    sigma_min: float | None = Field(
        default=None, gt=0, description="sigma/alpha of the last noisy level; default: the process's least"
    )
    sigma_max: float | None = Field(
        default=None, gt=0, description="sigma/alpha of the first level; default: the process's largest"
    )

    def levels(self, process: Process) -> tuple[Level, ...]:
        """Levels from sigma_max to sigma_min (in sigma/alpha; the process's bounds by default), then clean."""
        noisiest, cleanest = _sigma_ends(self.kind, self.sigma_max, self.sigma_min, process)

        def place(steps: int) -> Tensor:
            ends = math.exp(math.log(noisiest) / self.rho), math.exp(math.log(cleanest) / self.rho)
            logsnr = -2 * self.rho * torch.log(_fractions(steps, *ends))
            if steps > 1:  # the ends exactly, whatever exp and log did
                logsnr[-1] = -2 * math.log(cleanest)
            logsnr[0] = -2 * math.log(noisiest)
            return logsnr

        return finish(process, place, self.steps)


class UniformTime(Value):
    """Uniform in the process's own time: table index (ddpm), t (flow, vp), sigma (edm), from its noisy end.

    On flow the clean end of t is the clean level itself, so t = 1, (n-1)/n, ..., 1/n, 0; elsewhere both ends of the
    trained range are visited (the `linspace` spacing of DDPM, DDIM and Euler in diffusers).
    """

    kind: Literal["uniform_time"] = "uniform_time"
    steps: Steps = Field(default=20, description="number of steps, the last of which ends at the clean level")

    def levels(self, process: Process) -> tuple[Level, ...]:
        """`steps` levels uniform in time, then clean."""
        sweep = own_time(process).sweep
        ends_clean = bool(torch.isposinf(sweep(torch.zeros((), dtype=torch.float64))))

        def place(steps: int) -> Tensor:
            fractions = _fractions(steps + 1, 1, 0)[:-1] if ends_clean else _fractions(steps, 1, 0)
            return sweep(fractions)

        return finish(process, place, self.steps)


class Trailing(Value):
    """Table indices round(T - i*T/n) - 1: starts at the last index, as zero terminal SNR needs (Lin et al. 2024)."""

    kind: Literal["trailing"] = "trailing"
    steps: Steps = Field(default=20, description="number of steps, the last of which ends at the clean level")

    def levels(self, process: Process) -> tuple[Level, ...]:
        """`steps` levels of the table, then clean. Raises SnrkitError without a table."""
        total = _table_size(self.kind, self.steps, process)

        def place(steps: int) -> Tensor:
            index = torch.round(total - torch.arange(steps, dtype=torch.float64) * total / steps) - 1
            return process.logsnr(index)

        return finish(process, place, self.steps)


class Leading(Value):
    """Table indices i * floor(T/n) + offset, as published DDPM and DDIM samplers space them.

    They start short of the table's last index, by up to T/n (Lin et al. 2024). diffusers' DPM-Solver and UniPC take
    floor(T/(n+1)) under the same name, from the second index on.
    """

    kind: Literal["leading"] = "leading"
    steps: Steps = Field(default=20, description="number of steps, the last of which ends at the clean level")
    offset: int = Field(default=0, ge=0, le=LONGEST_TABLE, description="added to each index of the table")

    def levels(self, process: Process) -> tuple[Level, ...]:
        """`steps` levels of the table, then clean. Raises SnrkitError without a table."""
        total = _table_size(self.kind, self.steps, process)

        def place(steps: int) -> Tensor:
            index = torch.arange(steps, dtype=torch.float64).flip(0) * (total // steps) + self.offset
            if float(index[0]) > total - 1:
                raise SnrkitError(f"grid leading: offset {self.offset} leaves a table of {total} levels")
            return process.logsnr(index)

        return finish(process, place, self.steps)


class UniformLogsnr(Value):
    """Uniform in logsnr between the process's bounds; the field's `exponential` sigma grid."""

    kind: Literal["uniform_logsnr"] = "uniform_logsnr"
    steps: Steps = Field(default=20, description="number of steps, the last of which ends at the clean level")
    logsnr_min: float | None = Field(
        default=None, description="logsnr of the first level, nats; default: the process's noisiest"
    )
    logsnr_max: float | None = Field(
        default=None, description="logsnr of the last noisy level, nats; default: the process's cleanest"
    )

    def levels(self, process: Process) -> tuple[Level, ...]:
        """`steps` levels, both ends included, then clean."""
        low = process.bounds[0] if self.logsnr_min is None else self.logsnr_min
        high = process.bounds[1] if self.logsnr_max is None else self.logsnr_max
        if low >= high:
            raise SnrkitError(f"uniform_logsnr: logsnr_min {low:g} must be below logsnr_max {high:g}")
        return finish(process, lambda steps: _fractions(steps, low, high), self.steps)


class Polyexponential(Value):
    """ln(sigma/alpha) falls as a power of the way left (k-diffusion); rho 1 is `uniform_logsnr`."""

    kind: Literal["polyexponential"] = "polyexponential"
    steps: Steps = Field(default=20, description="number of steps, the last of which ends at the clean level")
    rho: float = Field(
        default=1.0,
        gt=0,
        description="power of the way left, that ln(sigma/alpha) follows; above 1 levels are closer at the clean end",
    )

    def levels(self, process: Process) -> tuple[Level, ...]:
        """`steps` levels between the process's bounds, both included, then clean."""
        low, high = process.bounds
        return finish(process, lambda steps: high + _fractions(steps, 1, 0) ** self.rho * (low - high), self.steps)


class BetaSigma(Value):
    """sigma/alpha at the quantiles of a Beta(alpha, beta) distribution (Lee et al. 2024), as diffusers and A1111 do.

    ComfyUI applies the same distribution to the table's index instead, which is another grid.
    """

    kind: Literal["beta"] = "beta"
    steps: Steps = Field(default=20, description="number of steps, the last of which ends at the clean level")
    alpha: float = Field(
        default=0.6,
        gt=0,
        description="alpha of the Beta distribution: below 1, the smaller, the more levels at the clean end",
    )
    beta: float = Field(
        default=0.6,
        gt=0,
        description="beta of the Beta distribution: below 1, the smaller, the more levels at the noisy end",
    )

    def levels(self, process: Process) -> tuple[Level, ...]:
        """`steps` levels between the process's bounds, both included, then clean."""
        from scipy.special import betaincinv  # type: ignore[import-untyped]

        low, high = process.bounds
        noisiest, cleanest = math.exp(-low / 2), math.exp(-high / 2)

        def place(steps: int) -> Tensor:
            quantiles = torch.from_numpy(betaincinv(self.alpha, self.beta, _fractions(steps, 1, 0).numpy()))
            return -2 * torch.log(cleanest + quantiles * (noisiest - cleanest))

        return finish(process, place, self.steps)


class KlOptimal(Value):
    """Angles atan(sigma/alpha) at even distances: optimal for unit Gaussian data (Sabour et al. 2024)."""

    kind: Literal["kl_optimal"] = "kl_optimal"
    steps: Steps = Field(default=20, description="number of steps, the last of which ends at the clean level")

    def levels(self, process: Process) -> tuple[Level, ...]:
        """`steps` levels between the process's bounds, both included, then clean."""
        low, high = process.bounds
        ends = math.atan(math.exp(-low / 2)), math.atan(math.exp(-high / 2))
        return finish(process, lambda steps: -2 * torch.log(torch.tan(_fractions(steps, *ends))), self.steps)


class VpSigmas(Value):
    """Sigmas of a VP SDE of linear beta at even times (Song et al. 2021; Karras et al. 2022, table 1, any model).

    ln(1 + sigma^2) = beta_d t^2/2 + beta_min t at t from 1 to `end`. The two betas are those with which the grid begins
    at sigma_max and ends at sigma_min; the published 19.9 and 0.1 go from 152.2 to 0.0105.
    """

    kind: Literal["vp"] = "vp"
    steps: Steps = Field(default=18, description="number of steps, the last of which ends at the clean level")
    sigma_min: float | None = Field(
        default=None, gt=0, description="sigma/alpha of the last noisy level; default: the process's least"
    )
    sigma_max: float | None = Field(
        default=None, gt=0, description="sigma/alpha of the first level; default: the process's largest"
    )
    end: float = Field(
        default=1e-3,
        gt=0,
        lt=0.5,
        description="epsilon_s of Karras et al. 2022, table 1: time of the last noisy level, of 1 at the first",
    )

    def levels(self, process: Process) -> tuple[Level, ...]:
        """Levels at even times, then clean. SnrkitError where no such SDE has both ends."""
        noisiest, cleanest = _sigma_ends(self.kind, self.sigma_max, self.sigma_min, process)
        first, last = math.log1p(noisiest**2), math.log1p(cleanest**2)
        steepness = 2 * (first - last / self.end) / (1 - self.end)  # beta_d
        least = first - steepness / 2  # beta_min
        if steepness + least <= 0:
            raise SnrkitError(
                f"grid vp: sigma would not rise to {noisiest:g} at time 1 after {cleanest:g} at {self.end:g}; raise end"
            )

        def place(steps: int) -> Tensor:
            time = _fractions(steps, 1, self.end)
            logsnr = -torch.log(torch.expm1(steepness / 2 * time**2 + least * time))
            if steps > 1:  # the ends exactly, whatever rounding did
                logsnr[-1] = -2 * math.log(cleanest)
            logsnr[0] = -2 * math.log(noisiest)
            return logsnr

        return finish(process, place, self.steps)


class IddpmSigmas(Value):
    """Sigmas of iDDPM's cosine table at even indices (Nichol & Dhariwal 2021; Karras et al. 2022, table 1, any model).

    u_M = 0,  u_(j-1)^2 = (u_j^2 + 1)/max(abar_(j-1)/abar_j, C_1) - 1,  abar_j = sin^2(pi/2 j/(M (C_2 + 1))):

    the table from its noisiest entry. Of those within sigma_max and sigma_min, `steps` are visited.
    """

    kind: Literal["iddpm"] = "iddpm"
    steps: Steps = Field(default=18, description="number of steps, the last of which ends at the clean level")
    sigma_min: float | None = Field(
        default=None, gt=0, description="no smaller sigma/alpha is visited; default: the process's least"
    )
    sigma_max: float | None = Field(
        default=None, gt=0, description="no larger sigma/alpha is visited; default: the process's largest"
    )
    table: int = Field(
        default=1000, gt=1, le=LONGEST_TABLE, description="M of Karras et al. 2022, table 1: entries of the table"
    )
    c_1: float = Field(
        default=0.001, gt=0, lt=1, description="C_1 of Karras et al. 2022, table 1: 1 - C_1 is the largest beta"
    )
    c_2: float = Field(
        default=0.008, ge=0, le=1, description="C_2 of Karras et al. 2022, table 1: offset of the cosine, s of iDDPM"
    )

    def levels(self, process: Process) -> tuple[Level, ...]:
        """Levels at even indices of what lies between the bounds, then clean. SnrkitError where nothing does."""
        noisiest, cleanest = _sigma_ends(self.kind, self.sigma_max, self.sigma_min, process)
        within = torch.tensor([u for u in self._sigmas() if cleanest <= u <= noisiest], dtype=torch.float64)
        if not len(within):
            raise SnrkitError(f"grid iddpm: no entry of its table lies between {cleanest:g} and {noisiest:g}")

        def place(steps: int) -> Tensor:
            index = torch.arange(steps, dtype=torch.float64) * ((len(within) - 1) / max(1, steps - 1))
            return -2 * torch.log(within[index.round().long()])

        return finish(process, place, self.steps)

    def _sigmas(self) -> list[float]:
        """u_0 to u_(M - 1), falling."""
        abar = [math.sin(math.pi / 2 * j / (self.table * (self.c_2 + 1))) ** 2 for j in range(self.table + 1)]
        square, found = 0.0, []
        for j in range(self.table, 0, -1):
            square = (square + 1) / max(abar[j - 1] / abar[j], self.c_1) - 1
            found.append(math.sqrt(square))
        return found[::-1]


class Listed(Value):
    """Levels that are listed, noisiest first: logsnr, sigma (over alpha), or times as the network reads them.

    As AYS (Sabour et al. 2024), GITS, OSS and LD3 publish them, and as `snrkit design` writes them. The clean level
    follows by itself; a sigma of 0 at the end of a list is it.
    """

    kind: Literal["listed"] = "listed"
    logsnr: Listing | None = Field(default=None, description="logsnr of each level, nats, rising")
    sigma: Listing | None = Field(
        default=None, description="sigma/alpha of each level, falling; a 0 at the end is the clean level"
    )
    time: Listing | None = Field(
        default=None, description="time of each level as the network reads it, the noisiest first"
    )

    @model_validator(mode="after")
    def _one(self) -> "Listed":
        given = [name for name in ("logsnr", "sigma", "time") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of logsnr, sigma and time, not {' and '.join(given) or 'none of them'}")
        if self.sigma is not None and (min(self._sigmas) <= 0 or not self._sigmas):
            raise ValueError("sigma is above 0, but for a 0 at the end")
        return self

    @property
    def _sigmas(self) -> tuple[float, ...]:
        assert self.sigma is not None
        return self.sigma[:-1] if self.sigma[-1] == 0 and len(self.sigma) > 1 else self.sigma

    @property
    def steps(self) -> int:
        """One from each level that is listed."""
        listed = self.logsnr or self.time
        return len(self._sigmas if listed is None else listed)

    def levels(self, process: Process) -> tuple[Level, ...]:
        """The levels, snapped to a table where there is one, then clean. SnrkitError where they do not rise."""
        listed = torch.tensor(self.logsnr or self.time or self._sigmas, dtype=torch.float64)
        if self.sigma is not None:
            listed = -2 * torch.log(listed)
        elif self.time is not None:
            listed = process.logsnr(listed)
        snapped = process.snap(listed)
        if not _rises(snapped) or bool(snapped.isnan().any()):
            raise SnrkitError(
                "grid listed: each level must be cleaner than the one before it, and another entry of the process's "
                "table where there is one; list them from the noisiest, without repeats"
            )
        return finish(process, lambda steps: listed[:steps], len(listed))


AnyGrid = Annotated[
    Karras
    | UniformTime
    | Trailing
    | Leading
    | UniformLogsnr
    | Polyexponential
    | BetaSigma
    | KlOptimal
    | VpSigmas
    | IddpmSigmas
    | Listed
    | SpectralGrid,
    Field(discriminator="kind"),
]
