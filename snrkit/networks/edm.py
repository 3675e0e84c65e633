"""The networks of EDM's published checkpoints, for running them: SongUNet (DDPM++ and NCSN++, after Song et al. 2021)
and DhariwalUNet (ADM, after Dhariwal & Nichol 2021), as Karras et al. 2022 define them in their appendix F.

Names of modules and parameters are those of the published files, so that their tensors load as they are. Everything is
float32. Where ours differ from the original is in what they are told: labels are numbers, -1 for none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from snrkit.base.value import Classes, Side, Value
from snrkit.diffusion.prediction import Cond
from snrkit.networks.embed import one_hot
from snrkit.networks.norms import GroupNorm

LARGEST_PERIOD = 10_000
Multiplier = Annotated[int, Field(ge=1, le=100)]


class Features(nn.Module):
    """cos and sin of the time at fixed frequencies: falling from 1 to 1/10000, or random ones that a file holds."""

    freqs: Tensor

    def __init__(self, dim: int, *, last: bool = False, random: bool = False) -> None:
        super().__init__()
        half = dim // 2
        if random:  # in units of full turns
            self.register_buffer("freqs", torch.randn(half) * 16)
        else:
            place = torch.arange(half, dtype=torch.float32) / (half - last)
            self.register_buffer("freqs", (1 / LARGEST_PERIOD) ** place, persistent=False)
        self.turn = 2 * math.pi if random else 1.0

    def forward(self, time: Tensor) -> Tensor:
        """(B,) -> (B, dim)."""
        angle = torch.outer(time, self.freqs * self.turn)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Conv(nn.Module):
    """A convolution of a square kernel; `resample` first doubles (up) or halves (down) the sides through a filter.

    Kernel 0: the resampling alone. `after`: halve after the convolution, in the order that fuses both.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        kernel: int,
        resample: Literal["up", "down"] | None = None,
        taps: Sequence[float] = (1, 1),
        after: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.after, self.pad = resample, after, kernel // 2
        self.weight = nn.Parameter(torch.empty(dim_out, dim_in, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(dim_out)) if kernel else None
        if self.weight is not None:
            nn.init.xavier_uniform_(self.weight)
        row = torch.tensor(taps, dtype=torch.float32)
        filters = torch.outer(row, row)[None, None] / row.sum() ** 2
        self.register_buffer("resample_filter", filters if resample else None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim_in, H, W) -> (B, dim_out, H', W')."""
        if self.resample_filter is None:
            return functional.conv2d(x, self.weight, self.bias, padding=self.pad) if self.weight is not None else x
        edge = (self.resample_filter.shape[-1] - 1) // 2
        if self.after and self.weight is not None:
            x = functional.conv2d(x, self.weight, padding=self.pad + edge)
            x = self._filtered(x, 0)
            return x if self.bias is None else x + self.bias[:, None, None]
        x = self._filtered(x, edge)
        return x if self.weight is None else functional.conv2d(x, self.weight, self.bias, padding=self.pad)

    def _filtered(self, x: Tensor, edge: int) -> Tensor:
        assert self.resample_filter is not None
        dim = x.shape[1]
        each = self.resample_filter.expand(dim, 1, -1, -1)
        if self.resample == "up":
            return functional.conv_transpose2d(x, 4 * each, groups=dim, stride=2, padding=edge)
        return functional.conv2d(x, each, groups=dim, stride=2, padding=edge)


def norm(dim: int, eps: float) -> nn.GroupNorm:
    """Groups of at least four channels, 32 of them at most."""
    return GroupNorm(min(32, dim // 4), dim, eps=eps)


@dataclass(frozen=True, slots=True)
class Style:
    """What all blocks of a network share."""

    dim_emb: int
    scale: float  # of every sum with a shortcut
    eps: float
    adaptive: bool  # the embedding scales and shifts; else it is added before the second norm
    project: bool  # shortcuts that resample have a convolution of their own
    dropout: float
    taps: tuple[float, ...] = (1, 1)
    head_channels: int | None = None  # None: one head


class Block(nn.Module):
    """A residual block with the embedding, and attention behind it."""

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        style: Style,
        attention: bool = False,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.dim_in, self.dim_out, self.style = dim_in, dim_out, style
        self.heads = 0 if not attention else dim_out // style.head_channels if style.head_channels else 1
        self.norm0 = norm(dim_in, style.eps)
        self.conv0 = Conv(dim_in, dim_out, 3, resample, style.taps)
        self.affine = nn.Linear(style.dim_emb, dim_out * (2 if style.adaptive else 1))
        self.norm1 = norm(dim_out, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv1 = Conv(dim_out, dim_out, 3)
        changes = dim_in != dim_out
        kernel = 1 if changes or style.project else 0
        self.skip = Conv(dim_in, dim_out, kernel, resample, style.taps) if changes or resample else None
        if self.heads:
            self.norm2 = norm(dim_out, style.eps)
            self.qkv = Conv(dim_out, 3 * dim_out, 1)
            self.proj = Conv(dim_out, dim_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, dim_in, H, W), embedding (B, dim_emb) -> (B, dim_out, H', W')."""
        h = self.conv0(functional.silu(self.norm0(x)))
        told = self.affine(emb)[:, :, None, None]
        if self.style.adaptive:
            gain, shift = told.chunk(2, dim=1)
            h = functional.silu(self.norm1(h) * (gain + 1) + shift)
        else:
            h = functional.silu(self.norm1(h + told))
        h = self.conv1(self.dropout(h))
        out: Tensor = (h + (x if self.skip is None else self.skip(x))) * self.style.scale
        return self._attended(out) if self.heads else out

    def _attended(self, x: Tensor) -> Tensor:
        """Channels of one head lie together, and within them query, key and value alternate."""
        batch, dim, height, width = x.shape
        mixed = self.qkv(self.norm2(x)).reshape(batch, self.heads, dim // self.heads, 3, height * width)
        q, k, v = (part.transpose(2, 3) for part in mixed.unbind(3))
        out = functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        joined: Tensor = (x + self.proj(out)) * self.style.scale
        return joined


class SongUNet(Value):
    """DDPM++ as it is by default; NCSN++ with embedding fourier, encoder residual, time_features 2 and four taps."""

    kind: Literal["song_unet"] = "song_unet"
    channels: int = Field(default=128, ge=4, le=2**14, description="channels that each of multipliers multiplies")
    multipliers: tuple[Multiplier, ...] = Field(
        default=(2, 2, 2),
        min_length=1,
        max_length=12,
        description="channels of each depth over `channels`; sides are halved from depth to depth",
    )
    blocks: int = Field(
        default=4, ge=1, le=16, description="residual blocks per depth on the way down, one more on the way up"
    )
    attention: tuple[Side, ...] = Field(default=(16,), max_length=100, description="resolutions with attention")
    embedding: Literal["positional", "fourier"] = Field(
        default="positional", description="features of the time: sinusoids (DDPM++), or at random frequencies (NCSN++)"
    )
    encoder: Literal["standard", "skip", "residual"] = Field(
        default="standard",
        description="how the image comes in at smaller sides: not at all, halved by a filter (skip), or by "
        "convolutions (residual)",
    )
    decoder: Literal["standard", "skip"] = Field(
        default="standard",
        description="whether the output comes from the full size alone, or from every size, added up (skip)",
    )
    time_features: int = Field(default=1, ge=1, le=100, description="features of the time over `channels`")
    taps: tuple[float, ...] = Field(
        default=(1, 1),
        min_length=2,
        max_length=100,
        description="taps of the filter by which sides are halved and doubled; they are divided by their sum",
    )
    dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="probability that a feature within a residual block is dropped, in training alone",
    )
    classes: Classes = Field(default=0, description="number of labels; 0 is unconditional")
    augment: int = Field(default=0, ge=0, le=2**14, description="parameters of an augmentation; zeros when sampling")

    def make(self, shape: tuple[int, int, int], outputs: int | None = None) -> nn.Module:
        """The network for images of `shape` (C, N, N), with C or `outputs` channels of output."""
        return SongModule(self, shape, outputs or shape[0])


class DhariwalUNet(Value):
    """ADM, by default at its size for 64 pixels."""

    kind: Literal["dhariwal_unet"] = "dhariwal_unet"
    channels: int = Field(default=192, ge=4, le=2**14, description="channels that each of multipliers multiplies")
    multipliers: tuple[Multiplier, ...] = Field(
        default=(1, 2, 3, 4),
        min_length=1,
        max_length=12,
        description="channels of each depth over `channels`; sides are halved from depth to depth",
    )
    blocks: int = Field(
        default=3, ge=1, le=16, description="residual blocks per depth on the way down, one more on the way up"
    )
    attention: tuple[Side, ...] = Field(default=(32, 16, 8), max_length=100, description="resolutions with attention")
    dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="probability that a feature within a residual block is dropped, in training alone",
    )
    classes: Classes = Field(default=0, description="number of labels; 0 is unconditional")
    augment: int = Field(default=0, ge=0, le=2**14, description="parameters of an augmentation; zeros when sampling")

    def make(self, shape: tuple[int, int, int], outputs: int | None = None) -> nn.Module:
        """The network for images of `shape` (C, N, N), with C or `outputs` channels of output."""
        return DhariwalModule(self, shape, outputs or shape[0])


class EdmModule(nn.Module):
    """What both networks share: labels and augmentation, and blocks in levels, halving and doubling the sides."""

    enc: nn.ModuleDict
    map_label: nn.Linear | None
    map_augment: nn.Linear | None

    def augmented(self, emb: Tensor, cond: Cond | None) -> Tensor:
        """The embedding with the augmentation's parameters."""
        if self.map_augment is None or cond is None or cond.augment is None:
            return emb
        told: Tensor = emb + self.map_augment(cond.augment)
        return told

    def encoder(self, value: "SongUNet | DhariwalUNet", shape: tuple[int, int, int], style: Style) -> nn.ModuleDict:
        """Blocks from the full size down."""
        layers, dim = nn.ModuleDict(), value.channels * (value.multipliers[0] if style.adaptive else 1)
        for depth, multiplier in enumerate(value.multipliers):
            size = shape[1] >> depth
            at = f"{size}x{size}"
            if depth == 0:
                layers[f"{at}_conv"] = Conv(shape[0], dim, 3)
            else:
                layers[f"{at}_down"] = Block(dim, dim, style, resample="down")
                layers.update(self.beside_down(at, depth, dim))
            for index in range(value.blocks):
                wide = value.channels * multiplier
                layers[f"{at}_block{index}"] = Block(dim, wide, style, size in value.attention)
                dim = wide
        return layers

    def decoder(self, value: "SongUNet | DhariwalUNet", shape: tuple[int, int, int], style: Style) -> nn.ModuleDict:
        """Blocks from the smallest size up, over what the encoder hands on."""
        layers, skips = nn.ModuleDict(), _outputs(self.enc)
        dim, last = skips[-1], len(value.multipliers) - 1
        for depth in range(last, -1, -1):
            size = shape[1] >> depth
            at = f"{size}x{size}"
            if depth == last:
                layers[f"{at}_in0"] = Block(dim, dim, style, attention=True)
                layers[f"{at}_in1"] = Block(dim, dim, style)
            else:
                layers[f"{at}_up"] = Block(dim, dim, style, resample="up")
            for index in range(value.blocks + 1):
                wide = value.channels * value.multipliers[depth]
                attention = size in value.attention and (style.adaptive or index == value.blocks)
                layers[f"{at}_block{index}"] = Block(dim + skips.pop(), wide, style, attention)
                dim = wide
            layers.update(self.beside_up(at, depth, dim))
        return layers

    def beside_down(self, at: str, depth: int, dim: int) -> dict[str, nn.Module]:
        """Layers beside the blocks of a level of the encoder."""
        return {}

    def beside_up(self, at: str, depth: int, dim: int) -> dict[str, nn.Module]:
        """Layers beside the blocks of a level of the decoder."""
        return {}


def _outputs(layers: nn.ModuleDict) -> list[int]:
    """Channels of what the encoder hands on."""
    found: list[Any] = [layer for name, layer in layers.items() if "aux" not in name]
    return [layer.dim_out if isinstance(layer, Block) else len(layer.weight) for layer in found]


def _up(block: nn.Module, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
    """A block of the decoder, with what the encoder hands on where it expects it."""
    made: Tensor = block(x if x.shape[1] == block.dim_in else torch.cat([x, skips.pop()], dim=1), emb)
    return made


class SongModule(EdmModule):
    """The U-Net of DDPM++ and NCSN++ (Song et al. 2021), as EDM has it."""

    def __init__(self, value: SongUNet, shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        image, side, dim_emb = shape[0], shape[1], 4 * value.channels
        features = value.channels * value.time_features
        self.value, self.output = value, f"dec.{side}x{side}_aux_conv"
        self.map_noise = Features(features, last=True, random=value.embedding == "fourier")
        self.time_embeddings = {"map_noise": features}
        self.map_label = nn.Linear(value.classes, features) if value.classes else None
        self.map_augment = nn.Linear(value.augment, features, bias=False) if value.augment else None
        self.map_layer0 = nn.Linear(features, dim_emb)
        self.map_layer1 = nn.Linear(dim_emb, dim_emb)
        style = Style(dim_emb, math.sqrt(0.5), 1e-6, False, True, value.dropout, value.taps)
        self.image, self.outputs = image, outputs
        self.enc = self.encoder(value, shape, style)
        self.dec = self.decoder(value, shape, style)

    def beside_down(self, at: str, depth: int, dim: int) -> dict[str, nn.Module]:
        """The image itself, halved too."""
        taps, image, aux = self.value.taps, self.image, f"{at}_aux"
        if self.value.encoder == "skip":
            return {f"{aux}_down": Conv(image, image, 0, "down", taps), f"{aux}_skip": Conv(image, dim, 1)}
        if self.value.encoder == "residual":
            before = image if depth == 1 else self.value.channels * self.value.multipliers[depth - 2]
            return {f"{aux}_residual": Conv(before, dim, 3, "down", taps, after=True)}
        return {}

    def beside_up(self, at: str, depth: int, dim: int) -> dict[str, nn.Module]:
        """To the output; with decoder skip at every size, added up."""
        skip, image = self.value.decoder == "skip", self.outputs
        made: dict[str, nn.Module] = {}
        if skip and depth < len(self.value.multipliers) - 1:
            made[f"{at}_aux_up"] = Conv(image, image, 0, "up", self.value.taps)
        if skip or depth == 0:
            made |= {f"{at}_aux_norm": norm(dim, 1e-6), f"{at}_aux_conv": Conv(dim, image, 3)}
        return made

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, C, N, N), time (B,) -> the same."""
        emb = self.map_noise(time).unflatten(1, (2, -1)).flip(1).flatten(1)  # sin before cos
        if self.map_label is not None:
            emb = emb + self.map_label(one_hot(cond, len(x), self.value.classes, emb) * math.sqrt(self.value.classes))
        emb = functional.silu(self.map_layer0(self.augmented(emb, cond)))
        emb = functional.silu(self.map_layer1(emb))
        return self._up(*self._down(x, emb), emb)

    def _down(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if "aux_down" in name:
                aux = layer(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + layer(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + layer(aux)) * math.sqrt(0.5)
            else:
                x = layer(x, emb) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        return x, skips

    def _up(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        aux: Tensor | None = None
        normed = x
        for name, layer in self.dec.items():
            if "aux_up" in name:
                aux = layer(aux)
            elif "aux_norm" in name:
                normed = layer(x)
            elif "aux_conv" in name:
                made = layer(functional.silu(normed))
                aux = made if aux is None else made + aux
            else:
                x = _up(layer, x, skips, emb)
        assert aux is not None
        return aux


class DhariwalModule(EdmModule):
    """The U-Net of ADM (Dhariwal & Nichol 2021), as EDM has it."""

    output = "out_conv"

    def __init__(self, value: DhariwalUNet, shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        dim_emb = 4 * value.channels
        self.value = value
        self.map_noise = Features(value.channels)
        self.time_embeddings = {"map_noise": value.channels}
        self.map_augment = nn.Linear(value.augment, value.channels, bias=False) if value.augment else None
        self.map_layer0 = nn.Linear(value.channels, dim_emb)
        self.map_layer1 = nn.Linear(dim_emb, dim_emb)
        self.map_label = nn.Linear(value.classes, dim_emb, bias=False) if value.classes else None
        style = Style(dim_emb, 1.0, 1e-5, True, False, value.dropout, head_channels=64)
        self.enc = self.encoder(value, shape, style)
        self.dec = self.decoder(value, shape, style)
        wide = value.channels * value.multipliers[0]
        self.out_norm = norm(wide, 1e-5)
        self.out_conv = Conv(wide, outputs, 3)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, C, N, N), time (B,) -> the same."""
        emb = self.augmented(self.map_noise(time), cond)
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(one_hot(cond, len(x), self.value.classes, emb))
        emb = functional.silu(emb)
        skips = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            x = _up(layer, x, skips, emb)
        out: Tensor = self.out_conv(functional.silu(self.out_norm(x)))
        return out
