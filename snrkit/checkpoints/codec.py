"""Latents: what a latent model's states are of images, by an autoencoder that diffusers saved (AutoencoderKL).

Images in [-1, 1] are encoded to the mean of their posterior, less the configuration's shift and times its scale, so
that encoding is the same at every call; training code often draws from the posterior, whose spread is small.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrkit.checkpoints.diffusers import class_of, diffusers_package, pretrained
from snrkit.data.dataset import Dataset, fingerprint
from snrkit.errors import ConfigError

BATCH = 64  # images encoded or decoded at once


@dataclass(frozen=True, slots=True)
class Codec:
    """An autoencoder."""

    network: Any
    image_channels: int
    channels: int  # of latents
    factor: int  # sides of images over those of latents
    scale: float
    shift: float
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
        parts = [self.network.encode(self._here(part)).latent_dist.mode() for part in torch.split(images, BATCH)]
        return ((torch.cat(parts) - self.shift) * self.scale).float().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, C, H, W) of latents (n, c, h, w), about in [-1, 1], float32 on the CPU."""
        back = (self._here(part) / self.scale + self.shift for part in torch.split(latents, BATCH))
        return torch.cat([self.network.decode(part).sample for part in back]).float().cpu()

    def _here(self, x: Tensor) -> Tensor:
        parameter = next(self.network.parameters())
        return x.to(parameter)


def load_codec(path: Path, device: torch.device) -> Codec:
    """The autoencoder of a folder, on a device. ConfigError where there is none."""
    name, config = class_of(path / "config.json", path)
    if name != "AutoencoderKL":
        raise ConfigError(f"model.vae: a {name} cannot be read; AutoencoderKL can.")
    network = pretrained(diffusers_package(), name, config, path, "vae")
    made = network.config
    factor = 2 ** (len(made.block_out_channels) - 1)
    mark = fingerprint(str(sorted(config.items())).encode(), str(path.resolve()).encode())
    return Codec(
        network.eval().requires_grad_(False).to(device), made.in_channels, made.latent_channels, factor,
        float(made.scaling_factor), float(made.get("shift_factor") or 0.0), mark,
    )  # fmt: skip


def encoded(dataset: Dataset, codec: Codec) -> Dataset:
    """The data set of the latents, each encoded when it is first asked for."""
    kept: dict[int, Tensor] = {}

    def read(indices: Sequence[int]) -> Tensor:
        missing = [i for i in dict.fromkeys(indices) if i not in kept]
        for part in (missing[k : k + BATCH] for k in range(0, len(missing), BATCH)):
            kept.update(zip(part, codec.encode(dataset.x0(part)), strict=True))
        return torch.stack([kept[i] for i in indices])

    mark = fingerprint(dataset.fingerprint.encode(), codec.mark.encode())
    return replace(dataset, shape=codec.shape(dataset.shape), pixels=read, fingerprint=mark, exact=None)
