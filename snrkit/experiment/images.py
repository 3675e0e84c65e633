"""The images of an experiment, opened: represented as the network sees them, split, measured where something asks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from snrkit.base.distributed import free_memory, in_bytes
from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.gradual import Done, Gradual
from snrkit.checkpoints.codec import Codec, Encoder, autoencoder_digest
from snrkit.checkpoints.foreign import Autoencoder
from snrkit.data import AnySource
from snrkit.data.dataset import Dataset, Moments, Split, measuring_moments, opening, restrict, split
from snrkit.data.latents import Latents
from snrkit.data.measured import Measured
from snrkit.data.representation import PIXELS, Representation
from snrkit.data.toy import TakesMemory
from snrkit.networks import Adapted, AnyTrained
from snrkit.networks.foreign import Foreign


@dataclass(frozen=True, slots=True)
class OpenedData:
    """Images with their split, and what was measured of them."""

    source: AnySource  # with sigma_data as given or as measured
    dataset: Dataset  # states, as the network sees them: without labels where it takes none
    labelled: Dataset  # images with all their labels, for metrics
    split: Split
    moments: Moments | None  # where something needs them
    measured: Measured  # the dataset, with what is measured of it when first asked for
    representation: Representation  # between images and states

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
        return self.representation.decode(x0)

    def shown(self, rows: Sequence[int], mirrored: bool = False) -> Tensor:
        """States (n, C, H, W) as training shows them: with data.flip every second is mirrored, or every other one."""
        x0 = self.dataset.x0(rows)
        if not self.source.flip:
            return x0
        images = self.representation.decode(x0)
        turned = (torch.arange(len(x0)) % 2 == 1) != mirrored
        return self.representation.encode(torch.where(turned[:, None, None, None], images.flip(3), images))


def opening_data(
    source: AnySource, network: AnyTrained | Foreign, codec: Codec | None, variance: bool, device: torch.device
) -> Gradual[OpenedData]:
    """Open the images, measure what is `auto`, and check that they fit the network: ConfigError.

    `codec`: of a model that encodes images itself. `variance`: whether it is asked for beside sigma_data.
    """
    _check_memory(source)
    labelled, dataset, representation = yield from _represented(source, codec, device)
    if source.workers and not labelled.streams:
        raise ConfigError(f"data.workers: has no effect, as {labelled.name} is held in memory; drop it.")
    check_fit(network, dataset, None if codec is None else codec.key)
    parts = split(dataset.count, source.holdout)
    asked = source.sigma_data == "auto" or variance
    found = (yield from measuring_moments(dataset, parts.train)) if asked else None
    if source.sigma_data == "auto":
        assert found is not None
        if found.variance <= 0:
            raise SnrkitError(f"{dataset.name}: all images are one constant; give data.sigma_data as a number.")
        source = source.model_copy(update={"sigma_data": round(found.sigma_data, 6)})
    seen = dataset if network.conditioning.classes else replace(dataset, labels=None, classes=0)
    return OpenedData(source, seen, labelled, parts, found, Measured(seen, parts, device), representation)


def _check_memory(source: AnySource) -> None:
    """ConfigError where images that are made are more than this machine can hold."""
    if isinstance(source, TakesMemory) and (needed := source.memory()) > (there := free_memory(torch.device("cpu"))):
        raise ConfigError(
            f"data: its images take {in_bytes(needed)}, and this machine has {in_bytes(there)} free; make fewer or "
            "smaller ones."
        )


def check_fit(network: AnyTrained | Foreign, dataset: Dataset, key: str | None) -> None:
    """ConfigError where a network has other shapes or labels than its states; `key` names whose latents these are."""
    classes = network.conditioning.classes
    if isinstance(network, Foreign | Adapted) and network.shape != dataset.shape:
        ours, theirs = _shape(dataset.shape), _shape(network.shape)
        if key is not None:
            raise ConfigError(f"{key}: its latents of these images are {ours}, and the model's states {theirs}.")
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


def _represented(
    source: AnySource, codec: Codec | None, device: torch.device
) -> Gradual[tuple[Dataset, Dataset, Representation]]:
    """(images, states, the way between them) of a source, and of a model that encodes images itself."""
    if codec is not None and (isinstance(source, Latents) or source.representation != PIXELS):
        raise ConfigError("data: the model encodes images itself; give it images, in the representation pixels.")
    if isinstance(source, Latents):
        yield Done("opening the latents")
        images, states, representation = _encoded(source, device)
    else:
        images = _chosen((yield from opening(source)), source)
        representation = codec or source.representation
        states = representation.states(images)
    if source.workers and codec is not None:
        raise ConfigError("data.workers: has no effect, as images become latents where the training runs; drop it.")
    if source.flip and not representation.exact:
        raise ConfigError("data.flip: latents of a mirrored image are no mirrored latents; drop it.")
    return images, states, representation


def _encoded(source: Latents, device: torch.device) -> tuple[Dataset, Dataset, Representation]:
    """As `_represented`, of latents that were encoded beforehand."""
    encoded = source.encoded()
    about, found = encoded.about, encoded.dataset()
    asked = Autoencoder(path=source.vae or Path(about.autoencoder), scale=about.scale, shift=about.shift)
    if autoencoder_digest(asked, "data.vae") != about.digest:
        raise ConfigError(
            f"data.vae: {asked.path} is not the autoencoder that {source.path} was made by, {about.autoencoder}; name "
            "that one, or encode the images anew with snrkit data encode."
        )
    representation = Encoder(asked, device, about.shape, found.shape, "data.vae")
    originals = source.originals(about, found)
    if originals is None:
        originals = representation.images(found)
    return _chosen(originals, source), _chosen(found, source), representation


def _chosen(dataset: Dataset, source: AnySource) -> Dataset:
    """The images of `data.only`."""
    return dataset if source.only is None else restrict(dataset, source.only)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
