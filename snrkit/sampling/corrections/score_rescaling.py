"""Temporal score rescaling (Xu et al. 2025, "Temporal score rescaling for temperature sampling in diffusion and flow
models", arXiv 2510.01184), as a correction of belief.

The score, and with it eps = -sigma score, is multiplied by

    r = (alpha^2 s^2 + sigma^2) / (alpha^2 s^2/k + sigma^2)

with k the inverse of a temperature and s the standard deviation of the data round their modes (the paper's sigma). On
data of N(m, s^2) it is exact: what is sampled is N(m, s^2/k). x0 follows from the state equation,

    x0' = x0 + (sigma/alpha)(1 - r) eps,    (sigma/alpha)(1 - r) = alpha sigma s^2 (1/k - 1) / (alpha^2 s^2/k + sigma^2)

which is defined at pure noise too, where r is 1. Constant scaling of the score or of eps (epsilon_scaling) differs by
being the same at every level.
"""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from snrkit.base.value import Value
from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, rewrap
from snrkit.sampling.step import Position, Range


class ScoreRescaling(Value):
    """Sample at the inverse temperature `k`: above 1 sharper, below 1 broader than the data; 1 is neutral."""

    kind: Literal["score_rescaling"] = "score_rescaling"
    k: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="inverse temperature: the variance round each mode is divided by it; 1 is neutral",
    )
    spread: float = Field(
        default=0.5,
        gt=0,
        le=1000,
        description="standard deviation of the data round their modes, in the data's own units (the paper's sigma)",
    )
    tunable: ClassVar[dict[str, Range]] = {"k": Range(1.0, 0.5, 2.0, coarse=0.05, fine=0.01)}

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The denoiser with its eps multiplied by r at the level of each answer."""
        if self.k == 1:
            return denoise

        def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None) -> Prediction:
            p = denoise(x, level, told=told, cond=cond)
            alpha, sigma, variance = level.alpha, level.sigma, self.spread**2
            share = variance * (1 / self.k - 1) / (alpha**2 * variance / self.k + sigma**2)  # (1 - r)/alpha^2
            of_x0, of_eps = broadcast(alpha * sigma * share, x), broadcast(alpha**2 * share, x)
            return replace(p, x0=p.x0 + of_x0 * p.eps, eps=p.eps - of_eps * p.eps)

        return rewrap(denoise, answer)
