"""The U-Net of improved-diffusion (Nichol & Dhariwal 2021) and guided-diffusion (Dhariwal & Nichol 2021), for running
their published files, whose names of modules and parameters it has. Everything is float32.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from snrkit.base.value import Classes, Side, Value, Width
from snrkit.diffusion.prediction import Cond
from snrkit.networks.embed import sinusoid
from snrkit.networks.norms import GroupNorm

GROUPS = 32


class AdmUNet(Value):
    """The network's shape, in the originals' words."""

    kind: Literal["adm_unet"] = "adm_unet"
    channels: int = Field(default=128, ge=GROUPS, le=2**12, description="channels that each of multipliers multiplies")
    multipliers: tuple[float, ...] = Field(
        default=(1, 2, 3, 4),
        min_length=1,
        max_length=12,
        description="channels of each depth over `channels`; sides are halved from depth to depth",
    )
    blocks: int = Field(
        default=2, ge=1, le=16, description="residual blocks per depth on the way down, one more on the way up"
    )
    attention: tuple[Side, ...] = Field(default=(16, 8), max_length=100, description="resolutions with attention")
    heads: Width = Field(default=4, description="attention heads of each attention layer")
    head_channels: Width | None = Field(
        default=None,
        description="channels of one attention head, which take the place of `heads`; default: `heads` decides",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that a feature within a residual block is dropped, in training alone",
    )
    classes: Classes = Field(default=0, description="number of labels; 0 is unconditional")
    scale_shift: bool = Field(default=True, description="the embedding scales and shifts; else it is added")
    resample_blocks: bool = Field(default=False, description="sides change in residual blocks; else in convolutions")
    new_order: bool = Field(
        default=False, description="queries of all heads, then keys, then values; else head by head"
    )

    def make(self, shape: tuple[int, int, int], outputs: int | None = None) -> nn.Module:
        """The network for images of `shape` (C, N, N), with C or `outputs` channels of output."""
        return AdmModule(self, shape, outputs or shape[0])


Resample = Literal["up", "down"] | None


def resized(x: Tensor, way: Resample) -> Tensor:
    """x (B, C, H, W) at twice the sides by repetition, at half of them by means, or as it is."""
    if way == "up":
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return functional.avg_pool2d(x, 2) if way == "down" else x


class Block(nn.Module):
    """A residual block with the embedding, which may change the sides on its way."""

    def __init__(self, dim_in: int, dim_out: int, value: AdmUNet, resample: Resample = None) -> None:
        super().__init__()
        self.resample, self.scale_shift, self.dim_out = resample, value.scale_shift, dim_out
        self.in_layers = nn.Sequential(GroupNorm(GROUPS, dim_in), nn.SiLU(), nn.Conv2d(dim_in, dim_out, 3, padding=1))
        told = dim_out * (2 if value.scale_shift else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * value.channels, told))
        last = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        self.out_layers = nn.Sequential(GroupNorm(GROUPS, dim_out), nn.SiLU(), nn.Dropout(value.dropout), last)
        self.skip_connection = nn.Identity() if dim_in == dim_out else nn.Conv2d(dim_in, dim_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, dim_in, H, W), embedding (B, 4 channels) -> (B, dim_out, H', W')."""
        norm, act, conv = self.in_layers
        h = conv(resized(act(norm(x)), self.resample))
        told = self.emb_layers(emb)[:, :, None, None]
        first, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = first(h) * (1 + scale) + shift
        else:
            h = first(h + told)
        for layer in rest:
            h = layer(h)
        out: Tensor = self.skip_connection(resized(x, self.resample)) + h
        return out


class Attention(nn.Module):
    """Attention over all places."""

    def __init__(self, dim: int, value: AdmUNet) -> None:
        super().__init__()
        self.heads = dim // value.head_channels if value.head_channels else value.heads
        if dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {dim} channels")
        self.new_order = value.new_order
        self.norm = GroupNorm(GROUPS, dim)
        self.qkv = nn.Conv1d(dim, 3 * dim, 1)
        self.proj_out = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, dim, H, W) -> the same; the embedding says nothing here."""
        flat = x.flatten(2)
        mixed = self.qkv(self.norm(flat))
        shape = (3, self.heads) if self.new_order else (self.heads, 3)
        parts = mixed.unflatten(1, (*shape, -1)).movedim(1 if self.new_order else 2, 0).transpose(-1, -2)
        out = functional.scaled_dot_product_attention(*parts).transpose(-1, -2).flatten(1, 2)
        joined: Tensor = (flat + self.proj_out(out)).reshape(x.shape)
        return joined


class Downsample(nn.Module):
    """Half the sides by a convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, H/2, W/2)."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Twice the sides, then a convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, 2H, 2W)."""
        out: Tensor = self.conv(resized(x, "up"))
        return out


class Stage(nn.Sequential):
    """Layers one after the other, each told the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, H, W), embedding -> (B, C', H', W')."""
        for layer in self:
            x = layer(x, emb)
        return x


class First(nn.Conv2d):
    """The first convolution, which takes no embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, H, W) -> (B, channels, H, W)."""
        return super().forward(x)


class AdmModule(nn.Module):
    """The U-Net of ADM (Dhariwal & Nichol 2021), by its own parameter names."""

    output = "out.2"

    def __init__(self, value: AdmUNet, shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        self.value, wide = value, 4 * value.channels
        dims = [int(value.channels * multiplier) for multiplier in value.multipliers]
        self.time_embed = nn.Sequential(nn.Linear(value.channels, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.label_emb = nn.Embedding(value.classes, wide) if value.classes else None
        self.time_embeddings = {"time_embed": wide}
        self.label_embeddings = ("label_emb",) if value.classes else ()
        self.input_blocks, handed = self._down(dims, shape)
        last = dims[-1]
        self.middle_block = Stage(Block(last, last, value), Attention(last, value), Block(last, last, value))
        self.output_blocks = self._up(dims, shape[1], handed)
        self.out = nn.Sequential(GroupNorm(GROUPS, dims[0]), nn.SiLU(), nn.Conv2d(dims[0], outputs, 3, padding=1))

    def _down(self, dims: Sequence[int], shape: tuple[int, int, int]) -> tuple[nn.ModuleList, list[int]]:
        """(stages from the full size down, the channels that each hands on)."""
        value, dim = self.value, dims[0]
        stages, handed = nn.ModuleList([Stage(First(shape[0], dim, 3, padding=1))]), [dim]
        for depth, wide in enumerate(dims):
            for _ in range(value.blocks):
                stages.append(self._stage(dim, wide, shape[1] >> depth))
                handed.append(dim := wide)
            if depth < len(dims) - 1:
                stages.append(Stage(Block(dim, dim, value, "down") if value.resample_blocks else Downsample(dim)))
                handed.append(dim)
        return stages, handed

    def _up(self, dims: Sequence[int], side: int, handed: list[int]) -> nn.ModuleList:
        """Stages from the smallest size up, over what the others handed on."""
        value, dim, stages = self.value, dims[-1], nn.ModuleList()
        for depth in range(len(dims) - 1, -1, -1):
            for index in range(value.blocks + 1):
                stage = self._stage(dim + handed.pop(), dims[depth], side >> depth)
                dim = dims[depth]
                if depth and index == value.blocks:
                    stage.append(Block(dim, dim, value, "up") if value.resample_blocks else Upsample(dim))
                stages.append(stage)
        return stages

    def _stage(self, dim: int, wide: int, size: int) -> Stage:
        attention = [Attention(wide, self.value)] if size in self.value.attention else []
        return Stage(Block(dim, wide, self.value), *attention)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, C, N, N), time (B,) -> (B, outputs, N, N)."""
        emb = self.time_embed(sinusoid(time, self.value.channels))
        if self.label_emb is not None:
            assert cond is not None
            assert cond.labels is not None
            emb = emb + self.label_emb(cond.labels.to(emb.device))
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        out: Tensor = self.out(x)
        return out
