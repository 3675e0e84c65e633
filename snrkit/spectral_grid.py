"""Grids that follow the power spectrum of each image, and what a sampler draws and tells for them.

A grid of n steps stands at t = 1, (n-2)/(n-1), ..., 0 of a spectral schedule (spectrum.py), then clean. Its levels
differ from image to image with `scope: instance` and `class`, and are one for all with `dataset`. Each image's spectrum
is drawn from the run's model of them, by a stream of the image's own seed.

A model that was not trained at spectral levels may be sampled on such a grid too; then its ends are drawn in to the
process's bounds, within which alone it was trained.

A reconstruction after Esteves & Makadia 2026.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.errors import SnrkitError
from snrkit.level import Level
from snrkit.process import Ddpm, Process
from snrkit.spectra import Scope
from snrkit.spectral_levels import SpectralLevels, told_ends
from snrkit.spectrum import SpectralSchedule
from snrkit.spectrum_model import SpectrumModel
from snrkit.streams import SPECTRUM, stream
from snrkit.value import Value


class SpectralGrid(Value):
    """Even steps in the t of a schedule made of a power spectrum."""

    kind: Literal["spectral"] = "spectral"
    steps: int = Field(20, ge=1)
    schedule: SpectralSchedule | None = Field(None, description="default: that of the training levels, if spectral")
    scope: Scope | None = Field(None, description="whose spectrum; default: that of the training levels, or dataset")
    scale: float = Field(1.0, gt=0, description="factor on the power of the finest rings: above 1 more texture")


@dataclass(frozen=True, slots=True)
class Spectral:
    """What a sampler knows of power spectra."""

    model: SpectrumModel
    levels: SpectralLevels | None = None  # of the training
    tells: bool = False  # whether the network is told the ends

    def scope(self, grid: SpectralGrid) -> Scope:
        """The grid's own, the training's, or dataset."""
        return grid.scope or (self.levels.scope if self.levels else "dataset")

    def power(
        self, grid: SpectralGrid | None, seeds: Sequence[int], labels: Tensor | None, own: Tensor | None = None
    ) -> Tensor:
        """Spectra (n, K + 1) of the images of `seeds` with `labels` (n,); without a grid the mean of all.

        `own` (n, K + 1) are those of images that exist; others are drawn.
        """
        found = self.model.mean.exp()[None].expand(len(seeds), -1)
        if grid is None:
            return found
        scope = self.scope(grid)
        if scope == "class" and labels is not None:
            found = self.model.class_means[labels.cpu()].exp()
        elif scope == "instance":
            found = self._drawn(seeds, labels) if own is None else own
        return found * textured(found.shape[1], grid.scale)

    def _drawn(self, seeds: Sequence[int], labels: Tensor | None) -> Tensor:
        streams = [stream(SPECTRUM, seed) for seed in seeds]
        u = torch.tensor([rng.random() for rng in streams], dtype=torch.float64)
        z = torch.stack([torch.from_numpy(rng.standard_normal(len(self.model.axes))) for rng in streams])
        return self.model.draw(u, z, labels)

    def ends(self, power: Tensor) -> Tensor | None:
        """What the network is told of images with spectra `power` (n, K + 1): (n, 2), or None."""
        if not self.tells:
            return None
        schedule = self.levels.schedule if self.levels else SpectralSchedule()
        return told_ends(*schedule.ends(power))

    def place(self, grid: SpectralGrid, power: Tensor, process: Process) -> tuple[Level, ...]:
        """`steps` + 1 snapped levels of shape (B,) of spectra (B, K + 1), rising, the last clean.

        SnrkitError where levels repeat, or where spectra lie beyond all that the process was trained at.
        """
        schedule = grid.schedule or (self.levels.schedule if self.levels else SpectralSchedule())
        t = torch.linspace(1, 0, grid.steps, dtype=torch.float64)
        logsnr = schedule.logsnr(power, t)
        if self.levels is None or isinstance(process, Ddpm):
            logsnr = drawn_in(logsnr, *process.bounds)
        logsnr = process.snap(logsnr)
        if not bool((logsnr[:, 1:] > logsnr[:, :-1]).all()):
            raise SnrkitError(
                f"a spectral grid of {grid.steps} steps repeats levels after snapping to the process's table; take "
                "fewer"
            )
        clean = torch.full((len(power),), math.inf, dtype=torch.float64)
        return tuple(process.level(value) for value in (*logsnr.unbind(1), clean))


def textured(rings: int, scale: float) -> Tensor:
    """Factors (K + 1,) on power: 1 up to the geometric middle of the rings, then even in ln k up to `scale`."""
    place = torch.arange(rings, dtype=torch.float64).clamp(min=1).log() / math.log(rings - 1)
    return torch.exp(math.log(scale) * (2 * place - 1).clamp(0, 1))


def drawn_in(logsnr: Tensor, low: float, high: float) -> Tensor:
    """Rising rows (B, n) with their ends brought within [low, high] and all between moved evenly along."""
    first, last = logsnr[:, :1], logsnr[:, -1:]
    new_first, new_last = first.clamp(min=low), last.clamp(max=high)
    if logsnr.shape[1] > 1 and bool((new_first >= new_last).any()):
        raise SnrkitError(f"these spectra ask for levels beyond the process's, logsnr {low:.2f} to {high:.2f}")
    inside = (first >= low) & (last <= high)
    stretch = (new_last - new_first) / (last - first).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(inside, logsnr, (new_first + (logsnr - first) * stretch).clamp(low, high))
