"""The power spectra of a data set, image by image, and their means: over everything, over classes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from snrkit.base.errors import DataError
from snrkit.spectral.schedule import interpolate

Scope = Literal["instance", "class", "dataset"]
RESAMPLED = 64  # points, even in ln k, that a slope is fitted to: else the many high rings decide


@dataclass(frozen=True, slots=True)
class Spectra:
    """Spectra P (n, K + 1) float64 of all images of a data set. Means are of ln P, over images that are trained on."""

    power: Tensor
    train: Tensor  # (m,) rows
    labels: Tensor | None  # (n,)
    classes: int

    @property
    def mean(self) -> Tensor:
        """The geometric mean spectrum (K + 1,) of the images that are trained on."""
        return self.power[self.train].log().mean(0).exp()

    @property
    def class_means(self) -> Tensor:
        """(classes, K + 1); a class that no image is trained on has the mean of all. DataError without labels."""
        if self.labels is None:
            raise DataError("these images have no labels, which scope class needs; use scope dataset or instance.")
        own, logs, rows = self.labels[self.train], self.power[self.train].log(), []
        for label in range(self.classes):
            chosen = logs[own == label]
            rows.append(chosen.mean(0).exp() if len(chosen) else self.mean)
        return torch.stack(rows)

    def scoped(self, scope: Scope) -> tuple[Tensor, Tensor]:
        """(spectra (r, K + 1), the row of every image (n,)): its own, its class's or the data set's.

        DataError for classes without labels.
        """
        if scope == "instance":
            return self.power, torch.arange(len(self.power))
        if scope == "dataset":
            return self.mean[None], torch.zeros(len(self.power), dtype=torch.int64)
        means = self.class_means
        assert self.labels is not None
        return means, self.labels


def slope(power: Tensor) -> float:
    """a of the power law A k^-a nearest to a spectrum P (K + 1,) in ln P, over ln k evenly from ring 1 to K."""
    rings = torch.arange(1, len(power), dtype=torch.float64).log()
    x = torch.linspace(0, float(rings[-1]), RESAMPLED, dtype=torch.float64)
    y = interpolate(x[None], rings[None], power[1:].log()[None])[0]
    x = x - x.mean()
    return -float((x * y).sum() / x.square().sum())
