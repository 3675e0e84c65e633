"""A model that snrkit trained, in one file: weights as safetensors, and in its header what they are the weights of.

`snrkit export RUN --to snrkit` writes it, `model: {kind: snrkit, path: FILE}` reads it. The header holds one JSON under
the key `snrkit`; nothing else is needed to sample from the model, measure it or train it further.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Literal

from pydantic import Field, ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from snrkit.base.errors import ConfigError, SnrkitError
from snrkit.base.value import Place, Seen, Side, Text, Value
from snrkit.checkpoints.foreign import Autoencoder, Described, filled
from snrkit.checkpoints.safetensors_files import read_header, read_safetensors
from snrkit.diffusion.denoiser import AnyPrecondition
from snrkit.diffusion.prediction import AnyTarget
from snrkit.diffusion.process import AnyProcess
from snrkit.networks import AnyTrained
from snrkit.networks.foreign import Foreign

KEY = "snrkit"  # in the header
LARGEST = 2**22  # characters of what stands there


class About(Value):
    """What the weights of a file are the weights of."""

    format: Literal[1] = 1
    shape: tuple[Side, Side, Side]
    process: AnyProcess
    target: AnyTarget
    precondition: AnyPrecondition
    network: AnyTrained
    sigma_data: float = Field(gt=0, le=1e6)
    unlabelled: bool  # trained also without labels, as guidance asks
    untold: bool  # trained also without being told the level, as noise-awareness guidance asks
    weights: Text  # the name of an average, or network
    images: Seen  # seen in training


def exported(about: About, weights: Mapping[str, Tensor]) -> bytes:
    """The content of such a file."""
    said = {KEY: about.model_dump_json()}
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, said)


class SnrkitModel(Value):
    """A file that snrkit export --to snrkit wrote."""

    kind: Literal["snrkit"] = "snrkit"
    path: Place = Field(description="`.safetensors` file that snrkit export --to snrkit wrote")

    def about(self) -> About:
        """What its header says. ConfigError where it says nothing that can be used."""
        text = read_header(self.path, "model.path").get(KEY)
        if text is None or len(text) > LARGEST:
            raise ConfigError(f"model.path: {self.path} does not say that snrkit export --to snrkit wrote it.")
        try:
            return About.model_validate(json.loads(text))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ConfigError(f"model.path: {self.path} describes an impossible {where}.") from None
        except (ValueError, RecursionError):
            raise ConfigError(f"model.path: {self.path} does not hold JSON in its header.") from None

    def describe(self) -> Described:
        """What its header says; its weights are not read."""
        about = self.about()
        takes = about.network.conditioning
        if takes.scalars:
            raise ConfigError(f"model.path: the network of {self.path} is told {', '.join(takes.scalars)} too.")
        network = Foreign(
            shape=about.shape,
            classes=takes.classes,
            null_label=about.unlabelled and takes.unlabelled,
            untold=about.untold and takes.untold,
            augment=takes.augment,
            attends=takes.attends,
            notes=(f"trained by snrkit on {about.images:,} images, weights {about.weights}",),
        )
        return Described(about.process, about.target, about.precondition, network, about.sigma_data)

    def autoencoder(self) -> Autoencoder | None:
        """None: states are images."""
        return None

    def architecture(self) -> AnyTrained:
        """The network that its header describes."""
        return self.about().network

    def load(self) -> nn.Module:
        """The network with the file's weights."""
        about, (_, weights) = self.about(), read_safetensors(self.path, "model.path")
        try:
            return filled(partial(about.network.make, about.shape), weights)
        except SnrkitError as error:
            raise ConfigError(f"model.path: {self.path} holds other weights than its header says ({error}).") from None
