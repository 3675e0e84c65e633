"""Frequency-decoupled guidance (Sadat et al. 2025, "Guidance in the frequency domain enables high-fidelity sampling at
low CFG scales", arXiv 2506.19713): classifier-free guidance with weights of their own for low and for high frequencies.

With c and u what the model says with the label and without, and psi an invertible transform into frequencies, the paper
guides each of them apart, psi_i(u) + w_i (psi_i(c) - psi_i(u)), and transforms back. Here, as the transform is linear,

    c + weight (low L (c - u) + high (1 - L)(c - u)),    w_low = 1 + weight low,    w_high = 1 + weight high

L x is the coarse level of a Laplacian pyramid of two levels, brought back to the size of the image (Burt and Adelson
1983, with the binomial filter 1 4 6 4 1), and x - L x its fine level: the paper's transform, in its plainest form. What
lies beyond an edge is left out of the filter, whose weights within the image are brought to a sum of 1. The paper's
further levels, and its weight of the parallel part (apg), are left out too.
"""

from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.transfer import send
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Denoiser, Prediction
from snrkit.sampling.corrections.guidance import LabelGuidance, Term, guide, weight_at
from snrkit.sampling.step import Position, Range

BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


class FrequencyDecoupledGuidance(LabelGuidance):
    """Guide low frequencies with `weight` times `low`, high ones with `weight` times `high`; both 1 is cfg.

    States are images (B, C, H, W) or videos (B, C, T, H, W), whose frames are taken apart; others are a SnrkitError.
    """

    kind: Literal["fdg"] = "fdg"
    low: float = Field(
        default=1.0, ge=0, le=1000, description="factor of weight for low frequencies: w_low is 1 + weight * low"
    )
    high: float = Field(
        default=1.0, ge=0, le=1000, description="factor of weight for high frequencies: w_high is 1 + weight * high"
    )
    tunable: ClassVar[dict[str, Range]] = {
        **LabelGuidance.tunable,
        "low": Range(1.0, 0.0, 2.0, coarse=0.1, fine=0.02),
        "high": Range(1.0, 0.0, 4.0, coarse=0.2, fine=0.05),
    }

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The guided denoiser; it needs a condition with labels."""
        weight = weight_at(self, position)
        return denoise if weight is None else guide(denoise, Term(weight, unlabelled=True, contrast=self.contrast))

    def contrast(self, x: Tensor, level: Level, plain: Prediction, other: Prediction) -> Prediction:
        """low L d + high (d - L d) of d = c - u, for x0 and for eps."""
        if x.ndim not in (4, 5):
            raise SnrkitError(
                "fdg needs images (B, C, H, W) or videos (B, C, T, H, W), and this state has shape "
                f"{tuple(x.shape)}; guide it by cfg"
            )
        return Prediction(self._weighted(plain.x0 - other.x0), self._weighted(plain.eps - other.eps))

    def _weighted(self, d: Tensor) -> Tensor:
        return self.high * d if self.low == self.high else self.high * d + (self.low - self.high) * coarse(d)


def coarse(x: Tensor) -> Tensor:
    """L x of images x (..., H, W): blurred, every second row and column kept, and brought back to their size."""
    down, across = (send(_smoothing(n).to(x.dtype), x.device) for n in x.shape[-2:])
    return down @ x @ across.mT


@lru_cache(maxsize=64)
def _smoothing(count: int) -> Tensor:
    """(n, n) of a row of n pixels: the mean of its coarse level, interpolated, float64; each row sums to 1."""
    offset = torch.arange(count)[:, None] - 2 * torch.arange((count + 1) // 2)
    weights = torch.tensor(BINOMIAL, dtype=torch.float64)[(offset + 2).clamp(0, 4)] * (offset.abs() <= 2)
    reduce, expand = weights / weights.sum(0), weights / weights.sum(1, keepdim=True)
    return expand @ reduce.mT
