"""A residual multilayer perceptron for toy data: the image is flattened."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from snrkit.base.value import WIDEST, Classes, Texts
from snrkit.diffusion.prediction import Cond
from snrkit.networks.config import NetworkValue
from snrkit.networks.embed import Extras, TwoLayers, label_rows, sinusoid
from snrkit.networks.norms import layer_norm


class Mlp(NetworkValue):
    """A residual perceptron on flattened images: its width and depth."""

    kind: Literal["mlp"] = "mlp"
    unlabelled: ClassVar[bool] = True
    untold: ClassVar[bool] = True

    dim: int = Field(default=256, ge=2, le=WIDEST, description="width of every hidden layer")
    depth: int = Field(default=3, ge=1, le=500, description="number of residual layers")
    classes: Classes = Field(default=0, description="number of labels; 0 is unconditional")
    scalars: Texts = Field(
        default=(),
        description="what it is told beside level and label: [logsnr_noisy, logsnr_clean] with spectral levels, "
        "else nothing",
    )
    augment: bool = Field(
        default=False, description="tell it the nine parameters of train.augment; either needs the other"
    )
    time_scale: float = Field(default=1.0, gt=0, description="factor of the process's time before its sinusoids")

    @property
    def stochastic(self) -> bool:
        """It has no dropout."""
        return False

    def make(self, shape: tuple[int, int, int]) -> nn.Module:
        """The network for images of `shape` (C, H, W)."""
        return MlpModule(self, shape)


class MlpModule(nn.Module):
    """The network that an `Mlp` describes."""

    output: ClassVar[str] = "last"  # the layer that gives the output

    def __init__(self, value: Mlp, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.value, self.features = value, 2 * (value.dim // 2)
        self.time_embedding = TwoLayers(self.features, value.dim)
        self.class_embedding = nn.Embedding(value.classes + 1, value.dim) if value.classes else None
        self.extras = Extras(self.features, value.dim, len(value.scalars), value.augment)
        self.first = nn.Linear(math.prod(shape), value.dim)
        self.layers = nn.ModuleList([nn.Linear(value.dim, value.dim) for _ in range(value.depth)])
        self.films = nn.ModuleList([nn.Linear(value.dim, 2 * value.dim) for _ in range(value.depth)])
        self.last = nn.Linear(value.dim, math.prod(shape))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """F (B, C, H, W) float32 from x (B, C, H, W) and time (B,), NaN where not told."""
        emb = functional.silu(self._embed(time, cond))
        h = self.first(x.flatten(1))
        for layer, film in zip(self.layers, self.films, strict=True):
            scale, shift = film(emb).chunk(2, dim=1)
            h = h + layer(functional.silu(layer_norm(h, (self.value.dim,)) * (1 + scale) + shift))
        return self.last(functional.silu(h)).reshape(x.shape).float()  # type: ignore[no-any-return]

    def _embed(self, time: Tensor, cond: Cond | None) -> Tensor:
        with torch.autocast(time.device.type, enabled=False):
            time = time.float()
            features = sinusoid(time.nan_to_num() * self.value.time_scale, self.features)
            emb: Tensor = self.extras(time, self.time_embedding(features), cond)
            if self.class_embedding is not None:
                emb = emb + self.class_embedding(label_rows(cond, len(time), self.value.classes, time.device))
        return emb
