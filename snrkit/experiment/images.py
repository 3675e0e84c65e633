"""The images of an experiment, opened: split, encoded where the model has latents, measured where something asks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snrkit.base.distributed import free_memory, in_bytes
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.checkpoints.codec import BATCH, Codec, encoded, load_codec
from snrkit.checkpoints.foreign import Autoencoder
from snrkit.data import AnySource
from snrkit.data.dataset import Dataset, Moments, Split, moments, restrict, split
from snrkit.data.measured import Measured
from snrkit.data.toy import TakesMemory
from snrkit.networks import Adapted, AnyTrained
from snrkit.networks.foreign import Foreign


@dataclass(frozen=True, slots=True)
class OpenedData:
    """Images with their split, and what was measured of them."""

    source: AnySource  # with sigma_data as given or as measured
    dataset: Dataset  # as the network sees it: without labels where it takes none
    labelled: Dataset  # the images as the source gives them, for metrics
    split: Split
    moments: Moments | None  # where something needs them
    measured: Measured  # the dataset, with what is measured of it when first asked for
    codec: Codec | None = None  # between images and states, for latent models

    @property
    def sigma_data(self) -> float:
        """The data's standard deviation, as given or as measured."""
        return float(self.source.sigma_data)

    @property
    def variance(self) -> float | None:
        """Of the training split, where it was measured."""
        return None if self.moments is None else self.moments.variance

    @property
    def ways(self) -> tuple[bool, ...]:
        """The values of `mirrored` that together show every image as training does."""
        return (False, True) if self.source.flip else (False,)

    def images(self, x0: Tensor) -> Tensor:
        """The images that clean states (n, *) are."""
        return x0 if self.codec is None else self.codec.decode(x0)

    def shown(self, rows: Sequence[int], mirrored: bool = False) -> Tensor:
        """Images (n, C, H, W) as training shows them: with data.flip every second is mirrored, or every other one."""
        x0 = self.dataset.x0(rows)
        if not self.source.flip:
            return x0
        turned = (torch.arange(len(x0)) % 2 == 1) != mirrored
        return torch.where(turned[:, None, None, None], x0.flip(3), x0)


def open_data(
    source: AnySource,
    network: AnyTrained | Foreign,
    autoencoder: Autoencoder | None,
    variance: bool,
    device: torch.device,
    at_once: int = BATCH,
) -> OpenedData:
    """Open the images, measure what is `auto`, and check that they fit the network: ConfigError.

    `variance`: whether it is asked for beside sigma_data. `at_once`: images that an autoencoder encodes.
    """
    _check_memory(source)
    labelled = source.open()
    if source.only is not None:
        labelled = restrict(labelled, source.only)
    if source.workers and not labelled.streams:
        raise ConfigError(f"data.workers: has no effect, as {labelled.name} is held in memory; drop it.")
    if source.workers and autoencoder is not None:
        raise ConfigError("data.workers: has no effect, as images become latents where the training runs; drop it.")
    codec = _codec(source, autoencoder, device)
    dataset = labelled if codec is None else encoded(labelled, codec, at_once)
    check_fit(network, dataset, codec is not None)
    parts = split(dataset.count, source.holdout)
    found = moments(dataset, parts.train) if source.sigma_data == "auto" or variance else None
    if source.sigma_data == "auto":
        assert found is not None
        if found.variance <= 0:
            raise SnrkitError(f"{dataset.name}: all images are one constant; give data.sigma_data as a number.")
        source = source.model_copy(update={"sigma_data": round(found.sigma_data, 6)})
    seen = dataset if network.conditioning.classes else replace(dataset, labels=None, classes=0)
    return OpenedData(source, seen, labelled, parts, found, Measured(seen, parts, device), codec)


def _check_memory(source: AnySource) -> None:
    """ConfigError where images that are made are more than this machine can hold."""
    if isinstance(source, TakesMemory) and (needed := source.memory()) > (there := free_memory(torch.device("cpu"))):
        raise ConfigError(
            f"data: its images take {in_bytes(needed)}, and this machine has {in_bytes(there)} free; make fewer or "
            "smaller ones."
        )


def check_fit(network: AnyTrained | Foreign, dataset: Dataset, latent: bool) -> None:
    """ConfigError where a network has other shapes or labels than its states; `latent`: these are an autoencoder's."""
    classes = network.conditioning.classes
    if isinstance(network, Foreign | Adapted) and network.shape != dataset.shape:
        ours, theirs = _shape(dataset.shape), _shape(network.shape)
        if latent:
            raise ConfigError(f"model.vae: its latents of these images are {ours}, and the model's states {theirs}.")
        raise ConfigError(f"data: images are {ours}, and the model's {theirs}; give images of that size.")
    if isinstance(network, Foreign | Adapted) and classes not in (0, dataset.classes):
        raise ConfigError(
            f"data: the model has {classes} labels, but {dataset.name} has {dataset.classes}; use images with the "
            "model's labels, or name its last label by model.null_label where that means none."
        )
    if classes and classes != dataset.classes:
        raise ConfigError(
            f"network.classes: {classes}, but {dataset.name} has {dataset.classes}; set it to that, or 0."
        )


def _codec(source: AnySource, asked: Autoencoder | None, device: torch.device) -> Codec | None:
    """Between images and states, for a latent model."""
    if asked is None:
        return None
    if source.flip:
        raise ConfigError("data.flip: latents of a mirrored image are no mirrored latents; drop it.")
    if source.workers:
        raise ConfigError("data.workers: has no effect on latents, which are encoded on the device; drop it.")
    return load_codec(asked, device)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
