"""What conditions a network: its time, a label, extra scalars and the augmentation's parameters, as one vector.

Everything here is float32 whatever the precision. Label and time each have a learned null embedding, taken where the
label is -1 and where the time is NaN.
"""

import math

import torch
from torch import Tensor, nn

from snrkit.diffusion.prediction import Cond

AUGMENT_PARAMETERS = 9


def sinusoid(time: Tensor, dim: int) -> Tensor:
    """[cos, sin] of `time` (...) at dim/2 frequencies from 1 down to 1/10000: (..., dim) (Vaswani et al. 2017)."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=time.device, dtype=torch.float32) * (-math.log(10_000) / half))
    angle = time.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TwoLayers(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim_out)
        self.linear_2 = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim_in) -> (B, dim_out)."""
        out: Tensor = self.linear_2(nn.functional.silu(self.linear_1(x)))
        return out


class NullTime(nn.Module):
    """What embeds the time, with a learned row where it is NaN."""

    def __init__(self, embed: nn.Module, dim: int) -> None:
        super().__init__()
        self.embed, self.null = embed, nn.Parameter(torch.zeros(dim))

    def forward(self, time: Tensor) -> Tensor:
        """The time (B,), or features of it (B, *), -> (B, dim)."""
        out: Tensor = self.embed(
            torch.where(time.isnan(), 0.0, time)
        )  # through a NaN, gradients of the others would be NaN too
        untold = time.isnan().reshape(len(time), -1).any(1, keepdim=True)
        return torch.where(untold, self.null.to(out.dtype), out)


class NullLabel(nn.Module):
    """An embedding of labels, with a learned row where one is -1, which begins as the mean of the others."""

    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed, self.null = embed, nn.Parameter(embed.weight.detach().mean(0))

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, dim)."""
        out: Tensor = self.embed(labels.clamp(min=0))
        return torch.where((labels < 0)[:, None], self.null.to(out.dtype), out)


class Extras(nn.Module):
    """What is added to the time embedding beside the label: null time, extra scalars, augmentation parameters."""

    def __init__(self, channels: int, dim: int, scalars: int, augment: bool) -> None:
        super().__init__()
        self.channels = channels
        self.null_time = nn.Parameter(torch.zeros(dim))
        self.scalars = nn.Linear(scalars * channels, dim) if scalars else None
        self.augment = nn.Linear(AUGMENT_PARAMETERS, dim, bias=False) if augment else None

    def forward(self, time: Tensor, embedded: Tensor, cond: Cond | None) -> Tensor:
        """`embedded` (B, dim), its null where `time` (B,) is NaN, plus the embeddings of scalars and augmentation."""
        out = torch.where(time.isnan()[:, None], self.null_time, embedded)
        if self.scalars is not None:
            assert cond is not None
            assert cond.scalars is not None
            out = out + self.scalars(sinusoid(cond.scalars, self.channels).flatten(1))
        if self.augment is not None and cond is not None and cond.augment is not None:
            out = out + self.augment(cond.augment.float())
        return out


def label_rows(cond: Cond | None, batch: int, classes: int, device: torch.device) -> Tensor:
    """Row of the label embedding for each image (B,); -1 and absent labels take the last row, the null class."""
    if cond is None or cond.labels is None:
        return torch.full((batch,), classes, device=device)
    return torch.where(cond.labels < 0, classes, cond.labels)


def one_hot(cond: Cond | None, batch: int, classes: int, like: Tensor) -> Tensor:
    """Labels (batch, classes) as `like`; zeros for -1 and for none."""
    hot = like.new_zeros(batch, classes)
    if cond is None or cond.labels is None:
        return hot
    rows = cond.labels.to(like.device)
    return hot.scatter(1, rows.clamp(min=0)[:, None], (rows >= 0).to(like)[:, None])
