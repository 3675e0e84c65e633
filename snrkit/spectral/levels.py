"""Levels of every training image's own, from its power spectrum: `levels: {kind: spectral}`.

The network may be told both ends of its image's schedule beside the level, as `network.scalars: [logsnr_noisy,
logsnr_clean]`; it is never told t, which means another level for every image. A share of the images is told the ends of
the data set's mean spectrum instead, so that images can also be sampled on a grid that has no spectrum.

A reconstruction after Esteves & Makadia 2026.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.value import Value
from snrkit.data.measured import Measured
from snrkit.diffusion.level import ROUNDING_VARIANCE
from snrkit.diffusion.process import Process
from snrkit.spectral.measure import spectra_of
from snrkit.spectral.schedule import SpectralSchedule, check_square
from snrkit.spectral.spectra import Scope, Spectra
from snrkit.spectral.tabulated import Tabulated

SCALARS = ("logsnr_noisy", "logsnr_clean")
TABULATED = 2048  # spectra at a time
UNIT = 4.0  # nats; what a network reads is in these
# a spectrum with a wider schedule than any 8-bit image of up to 1024x1024 has
WIDEST = torch.tensor([[2.0**20, 2.0**20, ROUNDING_VARIANCE]], dtype=torch.float64)


def told_ends(noisy: Tensor, clean: Tensor) -> Tensor:
    """What a network is told of the ends (B,) of schedules: (B, 2) float32, in the order of SCALARS."""
    return torch.stack([noisy, clean], 1).float() / UNIT


class SpectralLevels(Value):
    """Uniform in the t of a schedule made for the image, for its class or for the data set."""

    kind: Literal["spectral"] = "spectral"
    schedule: SpectralSchedule = Field(default=SpectralSchedule(), description="how logsnr falls over t for a spectrum")
    scope: Scope = Field(
        default="instance", description="whose spectrum: the image's own, its class's or the data set's mean"
    )
    mean_ends: float = Field(default=0.1, ge=0, lt=1, description="share of images that are told the data set's ends")

    def check(self, shape: tuple[int, int, int]) -> None:
        """Images must be square."""
        check_square(shape)

    def open(self, images: Measured) -> "Tables":
        """The schedules of all images, measured if they were not yet."""
        return self.tables(images.once(spectra_of))

    def widest(self) -> Tabulated:
        """A straight schedule between the ends of the widest."""
        noisy, clean = self.schedule.ends(WIDEST)
        return Tabulated(torch.stack([clean, noisy], 1))

    def tables(self, spectra: Spectra) -> "Tables":
        """The schedules of all images. DataError for scope class without labels."""
        power, of_image = spectra.scoped(self.scope)
        rows = torch.cat([self.schedule.table(part).float() for part in torch.split(power, TABULATED)])
        return Tables(rows, of_image, self.schedule.table(spectra.mean[None]), self.mean_ends)


@dataclass(frozen=True, slots=True)
class Tables:
    """The schedules of a data set: logsnr at T even times from 0 to 1.

    As a level sampler for all images it is that of the mean spectrum.
    """

    rows: Tensor  # (r, T) float32
    of_image: Tensor  # (n,) int64, the row of each image
    mean: Tensor  # (1, T) float64, of the mean spectrum
    mean_ends: float

    def logsnr(self, u: Tensor, process: Process) -> Tensor:
        """That of the mean spectrum."""
        return Tabulated(self.mean).logsnr(u, process)

    def density(self, logsnr: Tensor, process: Process) -> Tensor:
        """That of the mean spectrum."""
        return Tabulated(self.mean).density(logsnr, process)

    def of(self, images: Tensor) -> Tabulated:
        """The level sampler of these images (B,)."""
        return Tabulated(self._of(images))

    def offset(self, images: Tensor) -> Tensor:
        """(B,) nats: the mean over t of logsnr less that of the mean spectrum's schedule."""
        return mean_logsnr(self._of(images)) - mean_logsnr(self.mean)

    def told(self, images: Tensor, u: Tensor) -> Tensor:
        """(B, 2) what a network is told: the ends of each image, those of the mean spectrum where u (B,) says so."""
        own = self._of(images)
        rows = torch.where((u < self.mean_ends)[:, None], self.mean, own)
        return told_ends(rows[:, -1], rows[:, 0])

    def _of(self, images: Tensor) -> Tensor:
        return self.rows[self.of_image[images]].double()


def mean_logsnr(table: Tensor) -> Tensor:
    """(B,) mean over t of tables (B, T), linear between their points."""
    found: Tensor = torch.trapezoid(table, dx=1 / (table.shape[1] - 1))
    return found


class SpectralBias(Value):
    """The bias of a sigmoid weighting: `at` for the mean spectrum, higher by what an image's mean logsnr is higher.

    A rule of ours.
    """

    kind: Literal["spectral"] = "spectral"
    at: float = Field(default=0.0, description="bias for the data set's mean spectrum, nats")
