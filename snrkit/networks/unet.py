"""A U-Net of residual blocks with FiLM (Ho et al. 2020; Dhariwal & Nichol 2021).

Block layout and parameter names are those of diffusers' UNet2DModel with `resnet_time_scale_shift="scale_shift"`, so
that a checkpoint of it is a renaming away. What diffusers has no place for (null time, scalars, augmentation) lives in
`extras`.
"""

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from snrkit.base.value import WIDEST, Classes, Side, Texts, Width
from snrkit.diffusion.prediction import Cond
from snrkit.networks.blocks import Blockwise, alone_in, attend
from snrkit.networks.config import NetworkValue
from snrkit.networks.embed import Extras, TwoLayers, label_rows, sinusoid
from snrkit.networks.norms import GroupNorm

EPSILON = 1e-5


class UNet(NetworkValue):
    """The U-Net's shape. Depth i has channels * multipliers[i] channels and half the side of the depth above."""

    kind: Literal["unet"] = "unet"
    unlabelled: ClassVar[bool] = True
    untold: ClassVar[bool] = True
    blockwise: ClassVar[bool] = True

    channels: int = Field(default=64, ge=4, le=WIDEST, description="channels that each of multipliers multiplies")
    multipliers: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(
        default=(1, 2),
        min_length=1,
        max_length=10,
        description="channels of each depth over `channels`; sides are halved from depth to depth",
    )
    blocks: int = Field(
        default=2, ge=1, le=32, description="residual blocks per depth on the way down, one more on the way up"
    )
    attention: tuple[Side, ...] = Field(default=(), max_length=10, description="resolutions with attention")
    head_channels: Width = Field(default=32, description="channels of one attention head")
    groups: Width = Field(default=8, description="groups of channels in each normalisation")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that a feature within a residual block is dropped, in training alone",
    )
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

    @model_validator(mode="after")
    def _divisible(self) -> "UNet":
        if (count := self._undivided(self.groups)) is not None:
            near = self.channels // self.groups * self.groups or self.groups
            raise ValueError(
                f"groups {self.groups} does not divide {count} channels; set groups to {self._divisor(self.groups)}, "
                f"or channels to {near} or {near + self.groups}"
            )
        return self

    def _undivided(self, by: int) -> int | None:
        """The first of the depths' channels that a number does not divide."""
        return next((count for m in self.multipliers if (count := self.channels * m) % by), None)

    def _divisor(self, most: int) -> int:
        """The largest number up to `most` that divides the channels of every depth."""
        shared = self.channels * math.gcd(*self.multipliers)
        return next(number for number in range(min(most, shared), 0, -1) if shared % number == 0)

    @property
    def attends(self) -> bool:
        """At the resolutions that it names."""
        return bool(self.attention)

    @property
    def stochastic(self) -> bool:
        return self.dropout > 0

    def make(self, shape: tuple[int, int, int]) -> nn.Module:
        """The network for images of `shape` (C, H, W); H and W must halve len(multipliers) - 1 times."""
        halvings = 2 ** (len(self.multipliers) - 1)
        if shape[1] % halvings or shape[2] % halvings:
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} do not halve {len(self.multipliers) - 1} times; give fewer depths"
            )
        sizes = {shape[1] >> depth for depth in range(len(self.multipliers))}
        absent = sorted(set(self.attention) - sizes)
        if absent:
            there = sorted(sizes, reverse=True)
            raise ValueError(f"attention at {absent} has no effect: the resolutions are {there}; name some of these")
        if self.attention and (count := self._undivided(self.head_channels)) is not None:
            raise ValueError(
                f"head_channels {self.head_channels} does not divide {count} channels; set it to "
                f"{self._divisor(self.head_channels)}"
            )
        return UNetModule(self, shape)


class Residual(nn.Module):
    """norm, SiLU, conv, norm, FiLM, SiLU, dropout, conv, and the shortcut."""

    def __init__(self, dim_in: int, dim_out: int, dim_emb: int, value: UNet) -> None:
        super().__init__()
        self.norm1 = GroupNorm(value.groups, dim_in, eps=EPSILON)
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(dim_emb, 2 * dim_out)
        self.norm2 = GroupNorm(value.groups, dim_out, eps=EPSILON)
        self.dropout = nn.Dropout(value.dropout)
        self.conv2 = _zero(nn.Conv2d(dim_out, dim_out, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(dim_in, dim_out, 1) if dim_in != dim_out else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, dim_in, H, W), activated embedding (B, dim_emb) -> (B, dim_out, H, W)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.time_emb_proj(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(self.dropout(functional.silu(h)))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class SelfAttention(nn.Module):
    """Multi-head attention over pixels."""

    def __init__(self, dim: int, value: UNet) -> None:
        super().__init__()
        self.heads = dim // value.head_channels
        self.group_norm = GroupNorm(value.groups, dim, eps=EPSILON)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([_zero(nn.Linear(dim, dim))])

    def forward(self, x: Tensor, alone: bool) -> Tensor:
        """(B, C, H, W) -> the same. `alone`: as `attend` has it."""
        batch, dim, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (self._split(layer(tokens)) for layer in (self.to_q, self.to_k, self.to_v))
        out = attend(q, k, v, alone).transpose(1, 2).reshape(batch, -1, dim)
        mixed: Tensor = self.to_out[0](out)
        return x + mixed.transpose(1, 2).reshape(batch, dim, height, width)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class Resample(nn.Module):
    """A strided convolution down, or a nearest upsampling and a convolution."""

    def __init__(self, dim: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(dim, dim, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> half or twice the size."""
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0) if self.up else x)
        return out


class Depth(nn.Module):
    """All blocks of one resolution on one side of the U."""

    def __init__(self, dims: list[tuple[int, int]], dim_emb: int, value: UNet, attend: bool, move: str) -> None:
        super().__init__()
        dim = dims[-1][1]
        self.resnets = nn.ModuleList([Residual(i, o, dim_emb, value) for i, o in dims])
        self.attentions = nn.ModuleList([SelfAttention(dim, value) for _ in dims]) if attend else None
        self.downsamplers = nn.ModuleList([Resample(dim, up=False)]) if move == "down" else None
        self.upsamplers = nn.ModuleList([Resample(dim, up=True)]) if move == "up" else None

    def block(self, index: int, x: Tensor, emb: Tensor, alone: bool) -> Tensor:
        """The residual block `index` and its attention, if any."""
        x = self.resnets[index](x, emb)
        return x if self.attentions is None else self.attentions[index](x, alone)


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, attention between them where that resolution has it."""

    def __init__(self, dim: int, dim_emb: int, value: UNet, attend: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Residual(dim, dim, dim_emb, value) for _ in range(2)])
        self.attentions = nn.ModuleList([SelfAttention(dim, value)]) if attend else None

    def forward(self, x: Tensor, emb: Tensor, alone: bool) -> Tensor:
        """(B, C, H, W) -> the same."""
        x = self.resnets[0](x, emb)
        if self.attentions is not None:
            x = self.attentions[0](x, alone)
        out: Tensor = self.resnets[1](x, emb)
        return out


class UNetModule(Blockwise):
    """The network that a `UNet` describes."""

    output: ClassVar[str] = "conv_out"  # the layer that gives the output

    def __init__(self, value: UNet, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.value = value
        dims = [value.channels * m for m in value.multipliers]
        sizes = [shape[1] >> depth for depth in range(len(dims))]
        dim_emb, last = 4 * dims[0], len(dims) - 1
        self.conv_in = nn.Conv2d(shape[0], dims[0], 3, padding=1)
        self.time_embedding = TwoLayers(dims[0], dim_emb)
        self.class_embedding = nn.Embedding(value.classes + 1, dim_emb) if value.classes else None
        self.extras = Extras(dims[0], dim_emb, len(value.scalars), value.augment)
        self.attending: list[bool] = []  # of the parts that a state passes, in order
        self.down_blocks = nn.ModuleList()
        for depth, dim in enumerate(dims):
            pairs = [(dims[max(depth - 1, 0)], dim)] + [(dim, dim)] * (value.blocks - 1)
            move = "down" if depth < last else "stay"
            self.down_blocks.append(Depth(pairs, dim_emb, value, sizes[depth] in value.attention, move))
            self.attending += [sizes[depth] in value.attention] * len(pairs)
        self.middle = len(self.attending)
        self.attending.append(sizes[-1] in value.attention)
        self.mid_block = Middle(dims[-1], dim_emb, value, sizes[-1] in value.attention)
        self.up_blocks = nn.ModuleList()
        for depth, dim in reversed(list(enumerate(dims))):
            below = dims[min(depth + 1, last)]
            skips = [dim] * value.blocks + [dims[max(depth - 1, 0)]]
            pairs = [((below if i == 0 else dim) + skip, dim) for i, skip in enumerate(skips)]
            move = "up" if depth > 0 else "stay"
            self.up_blocks.append(Depth(pairs, dim_emb, value, sizes[depth] in value.attention, move))
            self.attending += [sizes[depth] in value.attention] * len(pairs)
        self.conv_norm_out = GroupNorm(value.groups, dims[0], eps=EPSILON)
        self.conv_out = _zero(nn.Conv2d(dims[0], shape[0], 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """F (B, C, H, W) float32 from x (B, C, H, W) and time (B,), NaN where not told."""
        emb, alone = functional.silu(self._embed(time, cond)), self._alone(cond)
        x = self.conv_in(x)
        skips = [x]
        for depth in self.down_blocks:
            assert isinstance(depth, Depth)
            for index in range(len(depth.resnets)):
                x = self.through(depth.block, index, x, emb, next(alone))
                skips.append(x)
            if depth.downsamplers is not None:
                x = depth.downsamplers[0](x)
                skips.append(x)
        x = self.through(self.mid_block, x, emb, next(alone))
        for depth in self.up_blocks:
            assert isinstance(depth, Depth)
            for index in range(len(depth.resnets)):
                x = self.through(depth.block, index, torch.cat([x, skips.pop()], dim=1), emb, next(alone))
            if depth.upsamplers is not None:
                x = depth.upsamplers[0](x)
        out: Tensor = self.conv_out(functional.silu(self.conv_norm_out(x)))
        return out.float()

    @property
    def attends(self) -> bool:
        """Where it names resolutions."""
        return any(self.attending)

    def _alone(self, cond: Cond | None) -> Iterator[bool]:
        """Of every part that a state passes, whether its tokens attend to themselves alone.

        The middle one is that of the middle block, or, where that has none, the one in the middle of their order.
        """
        count, before = sum(self.attending), list(accumulate(self.attending, initial=0))
        alone = alone_in(cond, count, before[self.middle] if self.attending[self.middle] else count // 2)
        return iter([attends and number in alone for attends, number in zip(self.attending, before, strict=False)])

    def _embed(self, time: Tensor, cond: Cond | None) -> Tensor:
        with torch.autocast(time.device.type, enabled=False):
            time = time.float()
            features = sinusoid(
                time.nan_to_num() * self.value.time_scale, self.value.channels * self.value.multipliers[0]
            )
            emb: Tensor = self.extras(time, self.time_embedding(features), cond)
            if self.class_embedding is not None:
                emb = emb + self.class_embedding(label_rows(cond, len(time), self.value.classes, time.device))
        return emb


Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def _zero(layer: Layer) -> Layer:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
