"""A diffusion transformer with adaLN-zero (Peebles & Xie 2023); parameter names are those of the published DiT.

Options: normalised queries and keys (Henry et al. 2020; Dehghani et al. 2023) and two-dimensional rotary positions (Su
et al. 2021) in place of fixed sine positions.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from snrkit.base.value import WIDEST, Classes, Side, Texts
from snrkit.diffusion.prediction import Cond
from snrkit.networks.blocks import Blockwise, alone_in, attend
from snrkit.networks.config import NetworkValue
from snrkit.networks.embed import Extras, label_rows, sinusoid
from snrkit.networks.norms import layer_norm

TIME_FEATURES = 256


class Dit(NetworkValue):
    """A diffusion transformer: its patches, width, depth and heads."""

    kind: Literal["dit"] = "dit"
    unlabelled: ClassVar[bool] = True
    untold: ClassVar[bool] = True
    blockwise: ClassVar[bool] = True

    patch: Side = Field(default=2, description="side of a patch, pixels of the states")
    dim: int = Field(default=192, ge=8, le=WIDEST, description="width of each token, channels")
    depth: int = Field(default=6, ge=1, le=200, description="number of transformer blocks")
    heads: int = Field(default=3, ge=1, le=1000, description="attention heads of each block")
    mlp_ratio: float = Field(
        default=4.0, gt=0, le=1000, description="hidden width of each block's perceptron over `dim`"
    )
    qk_norm: bool = Field(
        default=False,
        description="give queries and keys a root mean square of 1, times a learned scale (Dehghani et al. 2023)",
    )
    rotary: bool = Field(
        default=False, description="rotary positions of rows and columns (Su et al. 2021); else fixed sines are added"
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
    def _divisible(self) -> "Dit":
        if self.dim % (4 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of 4 * heads = {4 * self.heads}")
        return self

    @property
    def attends(self) -> bool:
        """In every block."""
        return True

    @property
    def stochastic(self) -> bool:
        """It has no dropout."""
        return False

    def make(self, shape: tuple[int, int, int], outputs: int | None = None) -> nn.Module:
        """The network for images of `shape` (C, H, W), whose sides the patch must divide; C or `outputs` come out."""
        if shape[1] % self.patch or shape[2] % self.patch:
            sides = f"{shape[1]}x{shape[2]}"
            raise ValueError(f"patch {self.patch} does not divide images of {sides}; set it to a divisor of both sides")
        return DitModule(self, shape, outputs or shape[0])


class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., head) -> the same, float32."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Attention(nn.Module):
    """Multi-head attention over patches. While `watch` is on, `largest` holds the largest logit of the last pass."""

    def __init__(self, value: Dit) -> None:
        super().__init__()
        head = value.dim // value.heads
        self.heads = value.heads
        self.qkv = nn.Linear(value.dim, 3 * value.dim)
        self.q_norm = RMSNorm(head, eps=1e-6) if value.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head, eps=1e-6) if value.qk_norm else nn.Identity()
        self.proj = nn.Linear(value.dim, value.dim)
        self.watch = False
        self.largest: Tensor | None = None

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, alone: bool = False) -> Tensor:
        """(B, T, dim) -> the same; `rotation` (cos, sin), each (T, head). `alone`: as `attend` has it."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if self.watch:
            with torch.no_grad():
                self.largest = (q.float() @ k.float().transpose(-1, -2)).amax() * q.shape[-1] ** -0.5
        out: Tensor = self.proj(attend(q, k, v, alone).transpose(1, 2).flatten(2))
        return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn consecutive pairs of the last dimension of x (..., T, head) by the angles of (cos, sin) (T, head)."""
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * cos + turned * sin


def rotary_angles(rows: int, columns: int, head: int) -> Tensor:
    """Angles (rows * columns, head): the first half of the head turns by row, the second by column."""
    frequency = 10_000 ** (-torch.arange(0, head // 2, 2, dtype=torch.float64) / (head // 2))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (row, column)]
    return torch.cat(angles, dim=1).repeat_interleave(2, dim=1)


def sine_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed positions (rows * columns, dim), half of the features by column and half by row, as published."""
    frequency = 10_000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    parts = [place.flatten()[:, None] * frequency for place in (column, row)]
    return torch.cat([wave(part) for part in parts for wave in (torch.sin, torch.cos)], dim=1)


class FeedForward(nn.Module):
    """The MLP of a block: linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> the same."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise x (B, T, dim) without learned scales, then FiLM by shift and scale (B, dim)."""
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Attention and feed-forward, each modulated and gated by the condition; the gates start at zero."""

    def __init__(self, value: Dit) -> None:
        super().__init__()
        self.attn = Attention(value)
        self.mlp = FeedForward(value.dim, int(value.dim * value.mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(value.dim, 6 * value.dim))

    def forward(self, x: Tensor, c: Tensor, rotation: tuple[Tensor, Tensor] | None, alone: bool = False) -> Tensor:
        """(B, T, dim), condition (B, dim) -> (B, T, dim)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attn(modulate(x, shift_a, scale_a), rotation, alone)
        out: Tensor = x + gate_m[:, None] * self.mlp(modulate(x, shift_m, scale_m))
        return out


class PatchEmbed(nn.Module):
    """Patches (p x p) of an image as tokens of the model's width."""

    def __init__(self, channels: int, value: Dit) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, value.dim, value.patch, stride=value.patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, dim)."""
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class TimeEmbed(nn.Module):
    """The time's sinusoids through two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, time: Tensor) -> Tensor:
        """(B,) -> (B, dim)."""
        out: Tensor = self.mlp(sinusoid(time, TIME_FEATURES))
        return out


class LabelEmbed(nn.Module):
    """One row a class, the last for the null class."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)


class FinalLayer(nn.Module):
    """Modulated tokens to patches."""

    def __init__(self, channels: int, value: Dit) -> None:
        super().__init__()
        self.linear = nn.Linear(value.dim, value.patch**2 * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(value.dim, 2 * value.dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, T, dim), condition (B, dim) -> (B, T, patch^2 * channels)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        out: Tensor = self.linear(modulate(x, shift, scale))
        return out


class DitModule(Blockwise):
    """The network that a `Dit` describes."""

    pos_embed: Tensor
    rotation_cos: Tensor
    rotation_sin: Tensor

    output: ClassVar[str] = "final_layer.linear"  # the layer that gives the output

    def __init__(self, value: Dit, shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        self.value, self.shape = value, (outputs, *shape[1:])
        self.rows, self.columns = shape[1] // value.patch, shape[2] // value.patch
        self.x_embedder = PatchEmbed(shape[0], value)
        self.t_embedder = TimeEmbed(value.dim)
        self.y_embedder = LabelEmbed(value.classes, value.dim) if value.classes else None
        self.extras = Extras(TIME_FEATURES, value.dim, len(value.scalars), value.augment)
        self.blocks = nn.ModuleList([Block(value) for _ in range(value.depth)])
        self.final_layer = FinalLayer(outputs, value)
        angles = rotary_angles(self.rows, self.columns, value.dim // value.heads)
        positions = sine_positions(self.rows, self.columns, value.dim)
        self.register_buffer("pos_embed", positions.float()[None], persistent=False)
        self.register_buffer("rotation_cos", angles.cos().float(), persistent=False)
        self.register_buffer("rotation_sin", angles.sin().float(), persistent=False)
        self._initialise()

    @property
    def attends(self) -> bool:
        """It does."""
        return True

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.value.dim, -1))
        gates = [block.adaLN_modulation[-1] for block in self.blocks if isinstance(block, Block)]
        for layer in (*gates, self.final_layer.adaLN_modulation[-1], self.final_layer.linear):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """F (B, C, H, W) float32 from x (B, C, H, W) and time (B,), NaN where not told."""
        c = self._embed(time, cond)
        tokens = self.x_embedder(x)
        rotation = (self.rotation_cos, self.rotation_sin) if self.value.rotary else None
        if rotation is None:
            tokens = tokens + self.pos_embed.to(tokens.dtype)
        alone = alone_in(cond, len(self.blocks), len(self.blocks) // 2)
        for number, block in enumerate(self.blocks):
            tokens = self.through(block, tokens, c, rotation, number in alone)
        return self._unpatch(self.final_layer(tokens, c)).float()

    def _embed(self, time: Tensor, cond: Cond | None) -> Tensor:
        with torch.autocast(time.device.type, enabled=False):
            time = time.float()
            c: Tensor = self.extras(time, self.t_embedder(time.nan_to_num() * self.value.time_scale), cond)
            if self.y_embedder is not None:
                rows = label_rows(cond, len(time), self.value.classes, time.device)
                c = c + self.y_embedder.embedding_table(rows)
        return c

    def _unpatch(self, tokens: Tensor) -> Tensor:
        patch, channels = self.value.patch, self.shape[0]
        grid = tokens.reshape(-1, self.rows, self.columns, patch, patch, channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, *self.shape)
