"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024, figure 21), for running its published files.

Every layer is built so that inputs of unit mean square give outputs of unit mean square; equations are that paper's.
Names of modules and parameters are those of the published files. Everything is float32. Weights are normalised as they
are used, and never changed.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from snrkit.base.value import Classes, Side, Value, Width
from snrkit.diffusion.prediction import Cond
from snrkit.networks.embed import one_hot

SILU = 0.596  # the root mean square of silu(n), n normal (eq. 81)
SMALL = 1e-4


def unit(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """x over its root mean square along `dims`."""
    length: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return x / (SMALL + length * math.sqrt(length.numel() / x.numel()))


def act(x: Tensor) -> Tensor:
    """SiLU at unit mean square (eq. 81)."""
    return functional.silu(x) / SILU


def blend(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b at the mean square of either, if these are independent (eq. 88)."""
    return a.lerp(b, share) / math.hypot(1 - share, share)


def join(a: Tensor, b: Tensor, share: float) -> Tensor:
    """a and b behind each other along the channels, weighing 1 - share and share together (eq. 103)."""
    size = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - share) ** 2 + share**2))
    return torch.cat(
        [a * (size * (1 - share) / math.sqrt(a.shape[1])), b * (size * share / math.sqrt(b.shape[1]))], dim=1
    )


class Edm2UNet(Value):
    """The network's shape; by default ImageNet-64's and latent ImageNet-512's size S.

    Multipliers that are not given: the first for the noise, the largest for the embedding.
    """

    kind: Literal["edm2_unet"] = "edm2_unet"
    channels: int = Field(default=192, ge=8, le=2**12, description="channels that each of multipliers multiplies")
    multipliers: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(
        default=(1, 2, 3, 4),
        min_length=1,
        max_length=12,
        description="channels of each depth over `channels`; sides are halved from depth to depth",
    )
    noise_multiplier: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="features of the noise over `channels`; default: the first of multipliers",
    )
    embedding_multiplier: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="width of the embedding over `channels`; default: the largest of multipliers",
    )
    blocks: int = Field(
        default=3, ge=1, le=16, description="residual blocks per depth on the way down, one more on the way up"
    )
    attention: tuple[Side, ...] = Field(default=(16, 8), max_length=100, description="resolutions with attention")
    head_channels: Width = Field(default=64, description="channels of one attention head")
    classes: Classes = Field(default=0, description="number of labels; 0 is unconditional")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that a feature within a residual block is dropped, in training alone",
    )
    label_balance: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the label in the embedding, beside the noise (t of Karras et al. 2024, eq. 88)",
    )
    concat_balance: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="share of a skip connection beside what it is joined to (t of Karras et al. 2024, eq. 103)",
    )
    residual_balance: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of a residual branch, beside the shortcut (t of Karras et al. 2024, eq. 88)",
    )
    attention_balance: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of an attention layer, beside its input (t of Karras et al. 2024, eq. 88)",
    )
    clip: float | None = Field(
        default=256.0, gt=0, description="largest absolute activation behind each block; null: no limit"
    )

    def make(self, shape: tuple[int, int, int], outputs: int | None = None) -> nn.Module:
        """The network for images of `shape` (C, N, N), with C or `outputs` channels of output."""
        return Edm2Module(self, shape, outputs or shape[0])


class Waves(nn.Module):
    """Cosines of the time at random frequencies and phases, which a file holds (eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(dim))
        self.register_buffer("phases", 2 * math.pi * torch.rand(dim))

    def forward(self, time: Tensor) -> Tensor:
        """(B,) -> (B, dim)."""
        return torch.cos(torch.outer(time.float(), self.freqs) + self.phases) * math.sqrt(2)


class Weight(nn.Module):
    """A layer without bias whose rows have unit length (eq. 47): a convolution, or with kernel 0 a linear one."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int) -> None:
        super().__init__()
        self.pad = kernel // 2
        self.weight = nn.Parameter(torch.randn(dim_out, dim_in, *(kernel,) * (2 if kernel else 0)))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """(B, dim_in, ...) -> (B, dim_out, ...), `gain` times."""
        weight = unit(self.weight, tuple(range(1, self.weight.ndim))) * (gain / math.sqrt(self.weight[0].numel()))
        return functional.linear(x, weight) if x.ndim == 2 else functional.conv2d(x, weight, padding=self.pad)


class Block(nn.Module):
    """A residual block with the embedding, and attention behind it; in the encoder the pixels are normalised first."""

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        dim_emb: int,
        value: Edm2UNet,
        encodes: bool,
        attention: bool = False,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.value, self.encodes, self.resample, self.dim_out = value, encodes, resample, dim_out
        self.heads = dim_out // value.head_channels if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = Weight(dim_out if encodes else dim_in, dim_out, 3)
        self.emb_linear = Weight(dim_emb, dim_out, 0)
        self.conv_res1 = Weight(dim_out, dim_out, 3)
        self.conv_skip = Weight(dim_in, dim_out, 1) if dim_in != dim_out else None
        self.attn_qkv = Weight(dim_out, 3 * dim_out, 1) if self.heads else None
        self.attn_proj = Weight(dim_out, dim_out, 1) if self.heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, dim_in, H, W), embedding (B, dim_emb) -> (B, dim_out, H', W')."""
        if self.resample is not None:
            up = self.resample == "up"
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest") if up else functional.avg_pool2d(x, 2)
        if self.encodes:
            x = unit(x if self.conv_skip is None else self.conv_skip(x), 1)
        y = self.conv_res0(act(x))
        y = act(y * (self.emb_linear(emb, self.emb_gain) + 1)[:, :, None, None])
        y = self.conv_res1(functional.dropout(y, self.value.dropout, self.training))
        if not self.encodes and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = self._attended(blend(x, y, self.value.residual_balance))
        return x if self.value.clip is None else x.clamp(-self.value.clip, self.value.clip)

    def _attended(self, x: Tensor) -> Tensor:
        """Queries, keys and values of unit length in each head; they alternate within it."""
        if self.attn_qkv is None or self.attn_proj is None:
            return x
        mixed = self.attn_qkv(x).reshape(len(x), self.heads, -1, 3, x.shape[2] * x.shape[3])
        q, k, v = (part.transpose(2, 3) for part in unit(mixed, 2).unbind(3))
        out = functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return blend(x, self.attn_proj(out), self.value.attention_balance)


class Edm2Module(nn.Module):
    """The magnitude-preserving U-Net of EDM2 (Karras et al. 2024)."""

    output = "out_conv"

    def __init__(self, value: Edm2UNet, shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        self.value = value
        dims = [value.channels * multiplier for multiplier in value.multipliers]
        noise = value.channels * (value.noise_multiplier or value.multipliers[0])
        self.dim_emb = value.channels * (value.embedding_multiplier or max(value.multipliers))
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = Waves(noise)
        self.emb_noise = Weight(noise, self.dim_emb, 0)
        self.time_embeddings = {"emb_noise": self.dim_emb}
        self.emb_label = Weight(value.classes, self.dim_emb, 0) if value.classes else None
        self.enc, handed = self._encoder(dims, shape)
        self.dec = self._decoder(dims, shape[1], handed)
        self.out_conv = Weight(dims[0], outputs, 3)

    def _encoder(self, dims: list[int], shape: tuple[int, int, int]) -> tuple[nn.ModuleDict, list[int]]:
        """(blocks from the full size down, the channels that each hands on)."""
        value, layers, dim = self.value, nn.ModuleDict(), dims[0]
        handed = [dim]
        for depth, wide in enumerate(dims):
            size = shape[1] >> depth
            if depth == 0:
                layers[f"{size}x{size}_conv"] = Weight(shape[0] + 1, dim, 3)
            else:
                layers[f"{size}x{size}_down"] = Block(dim, dim, self.dim_emb, value, True, resample="down")
                handed.append(dim)
            for index in range(value.blocks):
                attention = size in value.attention
                layers[f"{size}x{size}_block{index}"] = Block(dim, wide, self.dim_emb, value, True, attention)
                handed.append(dim := wide)
        return layers, handed

    def _decoder(self, dims: list[int], side: int, handed: list[int]) -> nn.ModuleDict:
        """Blocks from the smallest size up, over what the encoder hands on."""
        value, layers, dim, last = self.value, nn.ModuleDict(), dims[-1], len(dims) - 1
        for depth in range(last, -1, -1):
            size = side >> depth
            at = f"{size}x{size}"
            if depth == last:
                layers[f"{at}_in0"] = Block(dim, dim, self.dim_emb, value, False, attention=True)
                layers[f"{at}_in1"] = Block(dim, dim, self.dim_emb, value, False)
            else:
                layers[f"{at}_up"] = Block(dim, dim, self.dim_emb, value, False, resample="up")
            for index in range(value.blocks + 1):
                wide, attention = dims[depth], size in value.attention
                layers[f"{at}_block{index}"] = Block(dim + handed.pop(), wide, self.dim_emb, value, False, attention)
                dim = wide
        return layers

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, C, N, N), time (B,) -> (B, outputs, N, N)."""
        emb = self.emb_noise(self.emb_fourier(time))
        if self.emb_label is not None:
            hot = one_hot(cond, len(x), self.value.classes, emb) * math.sqrt(self.value.classes)
            emb = blend(emb, self.emb_label(hot), self.value.label_balance)
        emb = act(emb)
        x, skips = torch.cat([x, torch.ones_like(x[:, :1])], dim=1), []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(join(x, skips.pop(), self.value.concat_balance) if "block" in name else x, emb)
        out: Tensor = self.out_conv(x, self.out_gain)
        return out
