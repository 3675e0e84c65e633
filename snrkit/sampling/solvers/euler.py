"""Euler's step of dx = x0 d(alpha) + eps d(sigma): x' = alpha' x0 + sigma' eps, the same path in every scaling.

It is DDIM (Song et al. 2021, eq. 12 with eta = 0) in vp, Euler's step in sigma in ve, Euler's step in t in flow.
"""

from typing import Literal

from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Denoiser, Prediction
from snrkit.sampling.step import Call, Deterministic, Memory, Noise, Position


def recompose(prediction: Prediction, level: Level) -> Tensor:
    """alpha*x0 + sigma*eps at `level`: where Euler's step ends; exactly x0 at the clean level."""
    alpha, sigma = level.scales(prediction.x0)
    return alpha * prediction.x0 + sigma * prediction.eps


class Euler(Deterministic):
    """Order 1, one evaluation per step."""

    kind: Literal["euler"] = "euler"

    @property
    def order(self) -> int:
        """First, as one evaluation without memory allows."""
        return 1

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """x' = alpha' x0 + sigma' eps."""
        prediction = denoise(x, position.here)
        return recompose(prediction, position.there), (Call(position.here, prediction),), None
