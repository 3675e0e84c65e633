"""Latents: what a latent model's states are of images, by an autoencoder that diffusers saved.

AutoencoderKL says that the latents of an image are normal. Where images are encoded as they are asked for, states are
the mean of this posterior, so that encoding is the same at every call; where they were encoded beforehand
(data/latents.py), training draws from it.
AutoencoderDC and AutoencoderTiny give latents as they are. Then less a shift and times a scale, of the model's own
where it says so (EDM2's differ by channel) and else of the autoencoder's configuration.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrkit.base.cache import content_digest
from snrkit.base.errors import ConfigError, with_article
from snrkit.base.files import checksum
from snrkit.base.hub import fetched
from snrkit.checkpoints.folders import class_of, find_weights, pretrained
from snrkit.checkpoints.foreign import Autoencoder
from snrkit.data.dataset import Dataset, chunks, fingerprint, to_bytes

BATCH = 64  # images encoded or decoded at once
ALONE = 1  # images encoded at once in training, so that latents do not depend on which are asked for together; that
# they are the same bits in every process takes compute.deterministic on CUDA
KEPT = 2**30  # bytes of latents or images that are kept
SIDES = {  # the key of its configuration with a size for each resolution; sides are halved between them
    "AutoencoderKL": "block_out_channels",
    "AutoencoderDC": "encoder_block_out_channels",
    "AutoencoderTiny": "encoder_block_out_channels",
}
NOTE = "latents, of the autoencoder in {}"
NAMED = "model.vae"  # the key of an experiment that mostly names an autoencoder


@dataclass(frozen=True, slots=True)
class Codec:
    """An autoencoder with the scale and the shift of its latents: a Representation."""

    network: Any
    image_channels: int
    channels: int  # of latents
    factor: int  # sides of images over those of latents
    scale: Tensor  # broadcasts with (n, c, h, w)
    shift: Tensor
    unit: bool  # images are in [0, 1] to it
    mark: str
    path: Path
    key: str = NAMED  # of an experiment, that names it
    at_once: int = BATCH  # images of a data set that are encoded together

    @property
    def exact(self) -> bool:
        return False

    @property
    def note(self) -> str | None:
        return NOTE.format(self.path)

    def shape(self, image: tuple[int, int, int]) -> tuple[int, int, int]:
        """Of the latents of images (C, H, W). ConfigError where these do not fit."""
        if image[0] != self.image_channels or image[1] % self.factor or image[2] % self.factor:
            given = "x".join(map(str, image))
            takes = f"{self.image_channels} channels and sides that {self.factor} divides"
            raise ConfigError(f"data: images are {given}; the autoencoder takes {takes}.")
        return self.channels, image[1] // self.factor, image[2] // self.factor

    def states(self, images: Dataset) -> Dataset:
        """The data set of the latents, each encoded when it is asked for."""
        shape = self.shape(images.shape)
        read = Keeping(lambda indices: self.encode(images.x0(indices)), 4 * math.prod(shape), self.at_once)
        return replace(images.represented(shape, read, self.mark), streams=False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (n, c, h, w) of images (n, C, H, W) in [-1, 1], float32 on the CPU."""
        return torch.cat(
            [((self.posterior(part)[0] - self.shift) * self.scale).float().cpu() for part in torch.split(images, BATCH)]
        )

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(mean (n, c, h, w), standard deviation; None where there is no posterior) of the latents of images
        (n, C, H, W) in [-1, 1], without shift and scale, as the autoencoder gives them.
        """
        made = self.network.encode(self._here((images + 1) / 2 if self.unit else images))
        if hasattr(made, "latent_dist"):
            return made.latent_dist.mean, made.latent_dist.std
        return made.latents if hasattr(made, "latents") else made.latent, None

    @torch.no_grad()
    def decode(self, states: Tensor) -> Tensor:
        """Images (n, C, H, W) of latents (n, c, h, w), about in [-1, 1], float32 on the CPU."""
        back = (self._here(part) / self.scale + self.shift for part in torch.split(states, BATCH))
        images = torch.cat([self.network.decode(part).sample.float().cpu() for part in back])
        return 2 * images - 1 if self.unit else images

    def _here(self, x: Tensor) -> Tensor:
        parameter = next(self.network.parameters())
        return x.to(parameter)


def load_codec(asked: Autoencoder, device: torch.device, key: str = NAMED, at_once: int = BATCH) -> Codec:
    """The autoencoder of a folder, which `key` of an experiment names, on a device. ConfigError where there is none."""
    asked = fetched(asked)
    name, config = autoencoder_class(asked, key)
    network = pretrained(name, config, asked.path, key).eval().requires_grad_(False).to(device)
    made = network.config
    scale = asked.scale or (float(made.scaling_factor),)
    shift = asked.shift or (float(made.get("shift_factor") or 0.0),)
    if any(len(row) not in (1, made.latent_channels) for row in (scale, shift)):
        raise ConfigError(f"{key}: {asked.path} makes {made.latent_channels} channels, for a model of {len(scale)}.")
    by, less = (torch.tensor(row, device=device).reshape(1, -1, 1, 1) for row in (scale, shift))
    mark = fingerprint(f"{sorted(config.items())} {scale} {shift} {asked.unit}", autoencoder_digest(asked, key))
    return Codec(
        network,
        made.in_channels,
        made.latent_channels,
        2 ** (len(made[SIDES[name]]) - 1),
        by,
        less,
        asked.unit,
        mark,
        asked.path,
        key,
        at_once,
    )


def autoencoder_class(asked: Autoencoder, key: str = NAMED) -> tuple[str, dict[str, Any]]:
    """(the class of a folder's autoencoder, its configuration). ConfigError where it is none that is read."""
    folder = fetched(asked).path
    name, config = class_of(folder / "config.json", folder, key)
    if name not in SIDES:
        raise ConfigError(f"{key}: {with_article(name)} cannot be read; {', '.join(SIDES)} can.")
    return name, config


def autoencoder_digest(asked: Autoencoder, key: str = NAMED) -> str:
    """A checksum of a folder's configuration and weights, whatever else lies there. ConfigError: it has none."""
    autoencoder_class(asked, key)
    folder = fetched(asked).path
    files = [folder / "config.json", *find_weights(folder, key)[1]]
    return checksum("\n".join(f"{file.name} {content_digest(file)}" for file in files).encode())


@dataclass(frozen=True)
class Encoder:
    """The autoencoder of latents that were encoded beforehand, read when an image is first asked for."""

    asked: Autoencoder
    device: torch.device
    image: tuple[int, int, int]  # (C, H, W)
    latent: tuple[int, int, int]
    key: str = NAMED
    _kept: list[Codec] = field(default_factory=list)
    _turn: Any = field(default_factory=threading.Lock)  # of threads that read and that sample

    @property
    def exact(self) -> bool:
        return False

    @property
    def note(self) -> str | None:
        return NOTE.format(self.asked.path)

    @property
    def codec(self) -> Codec:
        """With its weights, read once. ConfigError where it does not make such latents of such images."""
        with self._turn:
            if not self._kept:
                codec = load_codec(self.asked, self.device, self.key)
                if codec.shape(self.image) != self.latent:
                    raise ConfigError(
                        f"{self.key}: {self.asked.path} does not make latents of {self.latent}; name another."
                    )
                self._kept.append(codec)
        return self._kept[0]

    def states(self, images: Dataset) -> Dataset:
        return self.codec.states(images)

    def encode(self, images: Tensor) -> Tensor:
        return self.codec.encode(images)

    def decode(self, states: Tensor) -> Tensor:
        return self.codec.decode(states)

    def images(self, latents: Dataset) -> Dataset:
        """The data set of the images that latents are decoded to, as bytes, when they are asked for."""
        read = Keeping(lambda indices: to_bytes(self.decode(latents.x0(indices))), math.prod(self.image))
        return replace(latents.represented(self.image, read, "decoded"), name=f"decoded {latents.name}")


@dataclass(slots=True)
class Keeping:
    """Reads by index, `batch` at a time; the last KEPT bytes are kept, at `size` an image. Threads take turns."""

    make: Callable[[Sequence[int]], Tensor]
    size: int  # bytes
    batch: int = BATCH
    kept: OrderedDict[int, Tensor] = field(default_factory=OrderedDict)
    lock: Any = field(default_factory=threading.Lock)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        with self.lock:
            found = {i: self.kept[i] for i in indices if i in self.kept}
            missing = [i for i in dict.fromkeys(indices) if i not in found]
            for part in chunks(missing, self.batch):
                found.update(zip(part, self.make(part).unbind(), strict=True))
            self.kept.update(found)
            while len(self.kept) > max(BATCH, KEPT // self.size):
                self.kept.popitem(last=False)
        return torch.stack([found[i] for i in indices])
