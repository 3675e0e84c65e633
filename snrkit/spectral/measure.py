"""The power spectra of a data set, measured."""

import torch

from snrkit.data.dataset import Dataset, Split, chunks
from snrkit.data.measured import Measured
from snrkit.spectral.schedule import check_square, power_spectra
from snrkit.spectral.spectra import Spectra

READ = 2048


def measure_spectra(dataset: Dataset, split: Split, device: torch.device) -> Spectra:
    """Of every image as it lies; mirrored ones have the same. SnrkitError where images are not square."""
    check_square(dataset.shape)
    parts = [power_spectra(dataset.x0(list(run)).to(device)).cpu() for run in chunks(range(dataset.count), READ)]
    return Spectra(torch.cat(parts), torch.tensor(split.train), dataset.labels, dataset.classes)


def spectra_of(images: Measured) -> Spectra:
    """As measure_spectra, for `Measured.once`."""
    return measure_spectra(images.dataset, images.split, images.device)
