"""What a run knows of power spectra: a model of those of its training images, which it keeps in a file.

It is fitted and written when first asked for, so that what is drawn for a seed stays what it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from snrkit.base.distributed import World
from snrkit.base.errors import RunError
from snrkit.base.files import disk_errors
from snrkit.base.tensors import read_tensors, write_tensors
from snrkit.data.dataset import fingerprint
from snrkit.data.measured import Measured
from snrkit.diffusion.level import Level
from snrkit.diffusion.process import Process
from snrkit.spectral.grid import Spectral, SpectralGrid, SpectralPlacement, spectral_levels
from snrkit.spectral.measure import spectra_of
from snrkit.spectral.model import SpectrumModel, fit_spectrum_model, load_spectrum_model
from snrkit.spectral.spectra import Scope

FILE = "spectra.safetensors"
OF = "power spectra"  # what its tensors are


def open_spectrum_model(folder: Path, images: Measured, world: World) -> SpectrumModel:
    """The model that the run in `folder` keeps, fitted to the images it is trained on when first asked for."""
    path = folder / FILE
    if not path.exists() and world.leads:
        model = fit_spectrum_model(images.once(spectra_of))
        with disk_errors(f"writing {path}", "free space and run the same command again"):
            write_tensors(path, model.tensors(), OF)
    world.barrier()
    try:
        found = load_spectrum_model(read_tensors(path, OF))
    except TypeError:
        raise RunError(f"{path} holds no model of spectra; delete it and run the same command again.") from None
    dataset = images.dataset
    shape = (dataset.shape[1] // 2 + 1, dataset.classes if dataset.labels is not None else 0)
    if (len(found.mean), len(found.class_means)) != shape:
        raise RunError(f"{path} is of other images; delete it and run the same command again.")
    return found


class Plain(Protocol):
    """A grid that is one for all images."""

    def levels(self, process: Process) -> Sequence[Level]:
        """Rising, the last clean."""


@dataclass(frozen=True, slots=True)
class RunSpectra:
    """What samplers of a run take of the spectra of its images."""

    folder: Path  # of the run
    images: Measured
    world: World
    process: Process
    levels: object  # of the training
    tells: bool  # whether the network is told of each image's schedule

    def known(self) -> Spectral:
        """The run's model of spectra and what its training made of them."""
        model = open_spectrum_model(self.folder, self.images, self.world)
        return Spectral(model, spectral_levels(self.levels), self.tells)

    def keep(self) -> None:
        """Have the file written where the training follows spectra."""
        if spectral_levels(self.levels) is not None:
            self.known()

    def placement(self, grid: object, told: Scope | None = None) -> SpectralPlacement | None:
        """None where neither the grid nor the network asks for spectra."""
        own = grid if isinstance(grid, SpectralGrid) else None
        return self.known().placement(own, self.process, told) if own is not None or self.tells else None

    def facts(self, grid: object) -> list[str]:
        """A fingerprint of the file, where images on this grid depend on it."""
        if self.placement(grid) is None:
            return []
        return [fingerprint((self.folder / FILE).read_bytes())]

    def beyond(self, grid: SpectralGrid | Plain) -> str | None:
        """What to say of a grid that asks for what training has not seen; None where it does not."""
        if isinstance(grid, SpectralGrid):
            return self.known().cut(grid, self.process)
        if spectral_levels(self.levels) is None:
            return None
        return self.known().outside(grid.levels(self.process), self.process)
