"""Grids that follow the power spectrum of each image, and what a sampler draws and tells for them.

A grid of n steps stands at t = 1, (n-2)/(n-1), ..., 0 of a spectral schedule (spectrum.py), then clean. Its levels
differ from image to image with `scope: instance` and `class`, and are one for all with `dataset`. Each image's spectrum
is drawn from the run's model of them, by a stream of the image's own seed.

A model that was not trained at spectral levels may be sampled on such a grid too. Ends are drawn in to what training
has seen: the process's bounds, or those of the training's schedules.

A reconstruction after Esteves & Makadia 2026.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.streams import SPECTRUM
from snrkit.base.value import Steps, Value
from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Ddpm, Process
from snrkit.spectral.levels import SpectralLevels, told_ends
from snrkit.spectral.model import SpectrumModel, photographic
from snrkit.spectral.schedule import SpectralSchedule, check_square, power_spectra
from snrkit.spectral.spectra import Scope

SLACK = 0.01  # nats
UNTOLD = "the network is told no ends of schedules (network.scalars), so that no texture can be asked of it"


class SpectralGrid(Value):
    """Even steps in the t of a schedule made of a power spectrum."""

    kind: Literal["spectral"] = "spectral"
    steps: Steps = Field(default=20, description="number of steps, the last of which ends at the clean level")
    schedule: SpectralSchedule | None = Field(
        default=None,
        description="how logsnr falls over t for a spectrum; default: that of the training levels, if spectral",
    )
    scope: Scope | None = Field(
        default=None, description="whose spectrum; default: that of the training levels, or dataset"
    )
    scale: float = Field(
        default=1.0, gt=0, description="factor on the power of the finest rings: above 1 asks for more texture"
    )

    def check(self, shape: tuple[int, int, int]) -> None:
        """Images must be square."""
        check_square(shape)

    def faults(self, classes: int, scalars: Sequence[str]) -> Iterable[str]:
        """Scope class needs classes, and a scale a network that is told of it."""
        if self.scope == "class" and not classes:
            yield "scope: class needs a network with classes; take instance or dataset"
        if self.scale != 1 and not scalars:
            yield f"scale: {UNTOLD}; drop it"

    def scope_under(self, levels: object) -> Scope:
        """Whose spectrum it follows after training at `levels`: its own scope, theirs if they have one, or dataset."""
        return self.scope or (levels.scope if isinstance(levels, SpectralLevels) else "dataset")

    def made_up(self, process: Process, levels: object) -> "SpectralPlacement":
        """By one spectrum, which falls as those of photographs do."""
        return Spectral(photographic(), spectral_levels(levels)).placement(self, process)


def spectral_levels(levels: object) -> SpectralLevels | None:
    """The levels of a training, if they are spectral."""
    return levels if isinstance(levels, SpectralLevels) else None


@dataclass(frozen=True, slots=True)
class Spectral:
    """What a sampler knows of power spectra."""

    model: SpectrumModel
    levels: SpectralLevels | None = None  # of the training
    tells: bool = False  # whether the network is told the ends

    @property
    def schedule(self) -> SpectralSchedule:
        """The training's, or the default one."""
        return self.levels.schedule if self.levels else SpectralSchedule()

    def scope(self, grid: SpectralGrid | None) -> Scope:
        """Whose spectrum a grid follows; dataset for grids that follow none."""
        return "dataset" if grid is None else grid.scope_under(self.levels)

    def placement(self, grid: SpectralGrid | None, process: Process, told: Scope | None = None) -> "SpectralPlacement":
        """A grid laid out by these spectra; None stands for one that follows none, where only the network is told.

        `told`: whose spectrum the network is told of; None for the one that the grid follows.
        """
        return SpectralPlacement(self, grid, process, told or self.scope(grid))

    def power(self, scope: Scope, seeds: Sequence[int], labels: Tensor | None, own: Tensor | None = None) -> Tensor:
        """Spectra (n, K + 1) of the images of `seeds` with `labels` (n,), -1 or None for none.

        `own` (n, K + 1) are those of images that exist; others are drawn.
        """
        if scope == "instance":
            return self._drawn(seeds, labels) if own is None else own
        rows = torch.full((len(seeds),), -1) if labels is None or scope == "dataset" else labels.cpu()
        return torch.cat([self.model.class_means, self.model.mean[None]])[rows].exp()

    def _drawn(self, seeds: Sequence[int], labels: Tensor | None) -> Tensor:
        streams = [SPECTRUM.open(seed) for seed in seeds]
        u = torch.tensor([rng.random() for rng in streams], dtype=torch.float64)
        z = torch.stack([torch.from_numpy(rng.standard_normal(len(self.model.axes))) for rng in streams])
        return self.model.draw(u, z, labels)

    def told(
        self, scope: Scope, scale: float, seeds: Sequence[int], labels: Tensor | None, own: Tensor | None = None
    ) -> Tensor | None:
        """What the network is told (n, 2) of the images' schedules, or None; arguments as in `power`.

        By the training's schedule, of spectra with `scale` on the finest rings; never beyond what training told.
        """
        if not self.tells or self.levels is None:
            return None
        power = self.power(scope, seeds, labels, own)
        ends = self.schedule.ends(power * textured(power.shape[1], scale))
        return told_ends(*(end.clamp(*either) for end, either in zip(ends, self._told_between(), strict=True)))

    def _told_between(self) -> tuple[Tensor, Tensor]:
        """The least and the largest (2,) that training told of the noisy end, and of the clean end."""
        return self.schedule.ends(torch.stack([self.model.high, self.model.low]).exp())

    def outside(self, levels: Sequence[Level], process: Process) -> str | None:
        """What a grid of these levels (), one for all, visits that training has not seen; None where it is nothing."""
        low, high = self.trained(process)
        first, last = float(levels[0].logsnr), float(levels[-2].logsnr)
        if low - SLACK <= first and last <= high + SLACK:
            return None
        return (
            f"its grid visits logsnr {first:.1f} to {last:.1f}, where training saw {low:.1f} to {high:.1f}; a grid of "
            "kind spectral, or karras between a sigma_min and a sigma_max, stays within."
        )

    def cut(self, grid: SpectralGrid, process: Process) -> str | None:
        """What a grid asks for that training has not seen, for the mean spectrum; None where there is nothing."""
        power = (self.model.mean.exp() * textured(len(self.model.mean), grid.scale))[None]
        noisy, clean = (float(end) for end in (grid.schedule or self.schedule).ends(power))
        low, high = self.trained(process)
        least, most = self._told_between()[1].tolist()
        if self.tells and grid.scale != 1 and not least <= float(self.schedule.ends(power)[1]) <= most:
            return f"scale {grid.scale:g} asks for a texture that no image of the training has, and is limited."
        if noisy < low - SLACK or clean > high + SLACK:
            return (
                f"its schedule asks for logsnr {noisy:.1f} to {clean:.1f} and is drawn in to {low:.1f} to {high:.1f}, "
                "what training saw."
            )
        return None

    def place(
        self,
        grid: SpectralGrid,
        process: Process,
        seeds: Sequence[int],
        labels: Tensor | None,
        own: Tensor | None = None,
    ) -> tuple[Level, ...]:
        """`steps` + 1 snapped levels of shape (n,), rising, the last clean; images as in `power`.

        Entries of a table that would repeat move to the next free ones. SnrkitError where the table has too few, or
        where spectra lie beyond all that was trained.
        """
        power = self.power(self.scope(grid), seeds, labels, own)
        t = torch.linspace(1, 0, grid.steps, dtype=torch.float64)
        logsnr = (grid.schedule or self.schedule).logsnr(power * textured(power.shape[1], grid.scale), t)
        logsnr = drawn_in(logsnr, *self.trained(process))
        logsnr = unrepeated(logsnr, process) if isinstance(process, Ddpm) else logsnr
        clean = torch.full((len(power),), math.inf, dtype=torch.float64)
        return tuple(process.level(value) for value in (*logsnr.unbind(1), clean))

    def trained(self, process: Process) -> tuple[float, float]:
        """The lowest and highest logsnr that training has seen: the process's bounds, or those of its schedules."""
        if self.levels is None:
            return process.bounds
        model = self.model
        seen = {
            "instance": torch.stack([model.low, model.high]),
            "class": model.class_means,
            "dataset": model.mean[None],
        }
        noisy, clean = self.levels.schedule.ends(seen[self.levels.scope].exp())
        low, high = float(noisy.min()), float(clean.max())
        return (max(low, process.bounds[0]), min(high, process.bounds[1])) if isinstance(process, Ddpm) else (low, high)


@dataclass(frozen=True, slots=True)
class SpectralPlacement:
    """A grid laid out image by image, and what the network is told; see snrkit.sampling.grid.Placement."""

    known: Spectral
    grid: SpectralGrid | None  # None: one that follows no spectrum, of which only what is told differs
    process: Process
    of: Scope  # whose spectrum the network is told of

    @property
    def varies(self) -> bool:
        """Where the grid follows the image or its class."""
        return self.known.scope(self.grid) != "dataset"

    @property
    def key(self) -> tuple[SpectralGrid | None, Scope]:
        return self.grid, self.of

    def typical(self) -> tuple[Level, ...]:
        """Those of the mean spectrum."""
        assert self.grid is not None
        shared = self.grid.model_copy(update={"scope": "dataset"})
        levels = self.known.place(shared, self.process, [0], None)
        return levels if self.varies else tuple(level.at(0) for level in levels)

    def levels(self, seeds: Sequence[int], labels: Tensor | None, own: Tensor | None = None) -> tuple[Level, ...]:
        assert self.grid is not None
        return self.known.place(self.grid, self.process, seeds, labels, own)

    def told(self, seeds: Sequence[int], labels: Tensor | None, own: Tensor | None = None) -> Tensor | None:
        return self.known.told(self.of, 1.0 if self.grid is None else self.grid.scale, seeds, labels, own)

    def follows(self, x0: Tensor) -> Tensor:
        return power_spectra(x0)


def textured(rings: int, scale: float) -> Tensor:
    """Factors (K + 1,) on power: 1 up to the geometric middle of the rings, then even in ln k up to `scale`."""
    place = torch.arange(rings, dtype=torch.float64).clamp(min=1).log() / math.log(rings - 1)
    return torch.exp(math.log(scale) * (2 * place - 1).clamp(0, 1))


def drawn_in(logsnr: Tensor, low: float, high: float) -> Tensor:
    """Rising rows (B, n) with their ends brought within [low, high] and all between moved evenly along."""
    first, last = logsnr[:, :1], logsnr[:, -1:]
    new_first, new_last = first.clamp(min=low), last.clamp(max=high)
    if logsnr.shape[1] > 1 and bool((new_first >= new_last).any()):
        raise SnrkitError(
            f"grid spectral: these spectra ask for levels beyond those of the training, logsnr {low:.2f} to "
            f"{high:.2f}; use another grid"
        )
    if logsnr.shape[1] == 1:
        return logsnr.clamp(low, high)
    inside = (first >= low) & (last <= high)
    stretch = (new_last - new_first) / (last - first)
    return torch.where(inside, logsnr, (new_first + (logsnr - first) * stretch).clamp(low, high))


def unrepeated(logsnr: Tensor, process: Ddpm) -> Tensor:
    """Rising rows (B, n) on the process's table, each entry at most once; SnrkitError where n entries are too many."""
    count = logsnr.shape[1]
    if count > process.steps:
        raise SnrkitError(f"a grid of {count} steps does not fit a table of {process.steps} levels")
    place = torch.arange(count)
    index = process.time(logsnr).round().long()  # falling along a row
    index = (index + place).cummin(1).values - place
    return process.logsnr(torch.maximum(index, count - 1 - place))
