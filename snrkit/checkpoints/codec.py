"""Latents: what a latent model's states are of images, by an autoencoder that diffusers saved.

Images are encoded by AutoencoderKL to the mean of their posterior, so that encoding is the same at every call (training
code often draws from the posterior, whose spread is small), by AutoencoderDC as they are; then less a shift and times a
scale, of the model's own where it says so (EDM2's differ by channel) and else of the autoencoder's configuration.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from snrkit.base.errors import ConfigError
from snrkit.checkpoints.folders import class_of, pretrained
from snrkit.checkpoints.foreign import Autoencoder, digest_of
from snrkit.data.dataset import Dataset, fingerprint

BATCH = 64  # images encoded or decoded at once
ALONE = 1  # images encoded at once where a resumed training is to see the same bits, whichever it asks for first
KEPT = 2**30  # bytes of latents that are kept
SIDES = {"AutoencoderKL": "block_out_channels", "AutoencoderDC": "encoder_block_out_channels"}  # halved between each


@dataclass(frozen=True, slots=True)
class Codec:
    """An autoencoder with the scale and the shift of its latents."""

    network: Any
    image_channels: int
    channels: int  # of latents
    factor: int  # sides of images over those of latents
    scale: Tensor  # broadcasts with (n, c, h, w)
    shift: Tensor
    unit: bool  # images are in [0, 1] to it
    mark: str

    def shape(self, image: tuple[int, int, int]) -> tuple[int, int, int]:
        """Of the latents of images (C, H, W). ConfigError where these do not fit."""
        if image[0] != self.image_channels or image[1] % self.factor or image[2] % self.factor:
            given = "x".join(map(str, image))
            takes = f"{self.image_channels} channels and sides that {self.factor} divides"
            raise ConfigError(f"data: images are {given}; the autoencoder takes {takes}.")
        return self.channels, image[1] // self.factor, image[2] // self.factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (n, c, h, w) of images (n, C, H, W) in [-1, 1], float32 on the CPU."""
        parts = (self._here((part + 1) / 2 if self.unit else part) for part in torch.split(images, BATCH))
        return torch.cat([((self._latents(part) - self.shift) * self.scale).float().cpu() for part in parts])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, C, H, W) of latents (n, c, h, w), about in [-1, 1], float32 on the CPU."""
        back = (self._here(part) / self.scale + self.shift for part in torch.split(latents, BATCH))
        images = torch.cat([self.network.decode(part).sample.float().cpu() for part in back])
        return 2 * images - 1 if self.unit else images

    def _latents(self, images: Tensor) -> Tensor:
        made = self.network.encode(images)
        found: Tensor = made.latent_dist.mode() if hasattr(made, "latent_dist") else made.latent
        return found

    def _here(self, x: Tensor) -> Tensor:
        parameter = next(self.network.parameters())
        return x.to(parameter)


def load_codec(asked: Autoencoder, device: torch.device) -> Codec:
    """The autoencoder of a folder, on a device. ConfigError where there is none."""
    name, config = class_of(asked.path / "config.json", asked.path, "vae")
    if name not in SIDES:
        raise ConfigError(f"model.vae: a {name} cannot be read; {' and '.join(SIDES)} can.")
    network = pretrained(name, config, asked.path, "vae").eval().requires_grad_(False).to(device)
    made = network.config
    scale = asked.scale or (float(made.scaling_factor),)
    shift = asked.shift or (float(made.get("shift_factor") or 0.0),)
    if any(len(row) not in (1, made.latent_channels) for row in (scale, shift)):
        raise ConfigError(
            f"model.vae: {asked.path} makes {made.latent_channels} channels, for a model of {len(scale)}."
        )
    by, less = (torch.tensor(row, device=device).reshape(1, -1, 1, 1) for row in (scale, shift))
    mark = fingerprint(f"{sorted(config.items())} {scale} {shift} {asked.unit}", digest_of(asked.path))
    return Codec(
        network,
        made.in_channels,
        made.latent_channels,
        2 ** (len(made[SIDES[name]]) - 1),
        by,
        less,
        asked.unit,
        mark,
    )


def encoded(dataset: Dataset, codec: Codec, batch: int = BATCH) -> Dataset:
    """The data set of the latents, each encoded when it is asked for, at most `batch` at once, and the last KEPT bytes
    of them kept. One thread at a time.
    """
    lock, shape = Lock(), codec.shape(dataset.shape)
    most = max(BATCH, KEPT // (4 * shape[0] * shape[1] * shape[2]))
    kept: OrderedDict[int, Tensor] = OrderedDict()

    def read(indices: Sequence[int]) -> Tensor:
        with lock:
            found = {i: kept[i] for i in indices if i in kept}
            missing = [i for i in dict.fromkeys(indices) if i not in found]
            for part in (missing[k : k + batch] for k in range(0, len(missing), batch)):
                found.update(zip(part, codec.encode(dataset.x0(part)).unbind(), strict=True))
            kept.update(found)
            while len(kept) > most:
                kept.popitem(last=False)
        return torch.stack([found[i] for i in indices])

    mark = fingerprint(dataset.fingerprint.encode(), codec.mark.encode())
    return replace(dataset, shape=shape, pixels=read, fingerprint=mark, streams=False, exact=None)
