"""Corrections of the predicted clean image: limits, and a rescaling of its spread. eps follows from the state equation.

clip_x0             to [-limit, limit], as DDPM's code does
dynamic_threshold   to the percentile s of |x0| of each image where s > 1, then divided by s (Saharia et al. 2022)
x0_rescale          the spread of x0_hat over the dimensions of an image, brought to its mean on forward samples of
                    the same level (after the manifold constraint of MCDO, Yao et al. 2025, whose reference is a run
                    of about 1000 steps; forward samples are snrkit's choice)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.transfer import send
from snrkit.base.value import Value
from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, rewrap
from snrkit.sampling.step import Position, Range, Sources, check_one_grid


def change_x0(
    denoise: Denoiser, change: Callable[[Tensor, Level], Tensor], eps: Literal["moved", "kept"] = "moved"
) -> Denoiser:
    """`denoise` with x0 replaced by change(x0, level) and eps moved so that alpha*x0 + sigma*eps stays, or kept."""

    def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None) -> Prediction:
        p = denoise(x, level, told=told, cond=cond)
        x0 = change(p.x0, level)
        if eps == "kept":
            return replace(p, x0=x0)
        return replace(p, x0=x0, eps=p.eps + broadcast(level.alpha / level.sigma, x) * (p.x0 - x0))

    return rewrap(denoise, answer)


class ClipX0(Value):
    """Keep the predicted image within [-limit, limit]; neutral where it lies within.

    eps moves along, as in DDPM's and OpenAI's samplers, or is kept, as in diffusers' DDIM.
    """

    kind: Literal["clip_x0"] = "clip_x0"
    limit: float = Field(
        default=1.0, gt=0, description="largest absolute value of the predicted image, pixels in [-1, 1]"
    )
    eps: Literal["moved", "kept"] = Field(
        default="moved",
        description="moved: eps follows from the limited image, as in DDPM; kept: it stays as predicted, as in "
        "diffusers' DDIM",
    )

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The denoiser with its x0 clipped."""
        return change_x0(denoise, lambda x0, _: x0.clamp(-self.limit, self.limit), self.eps)


class DynamicThreshold(Value):
    """Clip at a percentile of |x0| and divide by it, where it is above `floor`; neutral at a high floor."""

    kind: Literal["dynamic_threshold"] = "dynamic_threshold"
    percentile: float = Field(
        default=0.995,
        gt=0,
        le=1,
        description="share of an image's numbers whose |x0| lies below its threshold (Saharia et al. 2022)",
    )
    floor: float = Field(
        default=1.0, gt=0, description="range of the data, into which x0 is scaled where its threshold is larger"
    )

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The denoiser with its x0 brought into [-floor, floor]."""

        def change(x0: Tensor, level: Level) -> Tensor:
            size = torch.quantile(x0.abs().flatten(1), self.percentile, dim=1).clamp(min=self.floor)
            size = size.reshape(-1, *(1,) * (x0.ndim - 1))
            return x0.clamp(-size, size) * (self.floor / size)

        return change_x0(denoise, change)


class X0Rescale(Value):
    """Bring the spread of every x0_hat `share` of the way to its mean on real images; 0 is neutral."""

    kind: Literal["x0_rescale"] = "x0_rescale"
    share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the way by which the spread of each predicted image goes to its mean on real ones; "
        "0 is neutral",
    )
    tunable: ClassVar[dict[str, Range]] = {"share": Range(0.0, 0.0, 1.0, coarse=0.1, fine=0.02)}

    def open(self, sources: Sources, levels: Sequence[Level]) -> "OpenedX0Rescale":
        """The correction with the spreads at the levels of a grid, measured on training images."""
        check_one_grid(levels)
        noisy = [level for level in levels if not level.is_clean()]
        logsnr = torch.stack([level.logsnr for level in noisy])
        return OpenedX0Rescale(self.share, logsnr, sources.forward(noisy).x0_variance if self.share else logsnr)


@dataclass(frozen=True, slots=True)
class OpenedX0Rescale:
    """The rescaling with its target variances (L,) at the logsnr (L,) of a grid; the nearest one holds elsewhere."""

    share: float
    logsnr: Tensor
    variance: Tensor

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The denoiser with the spread of its x0 changed round each image's mean."""
        if self.share == 0:
            return denoise

        def change(x0: Tensor, level: Level) -> Tensor:
            flat = x0.flatten(1)
            nearest = torch.nan_to_num(level.logsnr[..., None] - self.logsnr).abs().argmin(-1)
            wanted = send(self.variance[nearest].to(x0.dtype), x0.device).expand(len(x0))
            own = flat.var(1, correction=0)
            factor = torch.where(own > 0, wanted / own.clamp(min=1e-30), 1.0).sqrt()  # a constant image has no spread
            factor = factor.reshape(-1, *(1,) * (x0.ndim - 1))
            centre = flat.mean(1).reshape(-1, *(1,) * (x0.ndim - 1))
            return x0 + self.share * (factor - 1) * (x0 - centre)

        return change_x0(denoise, change)
