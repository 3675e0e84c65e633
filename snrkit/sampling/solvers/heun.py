"""Heun's step of dx = x0 d(alpha) + eps d(sigma): the slopes at both ends of the Euler step, averaged.

In the ve scaling it is EDM's Algorithm 1 (Karras et al. 2022), in flow the velocity Heun in t, in vp Heun on DDIM's
line; unlike Euler's, the path differs between scalings. Into the clean level it is one Euler step.
"""

from typing import Literal

from torch import Tensor

from snrkit.diffusion.prediction import Denoiser
from snrkit.sampling.solvers.euler import recompose
from snrkit.sampling.step import Call, Deterministic, Memory, Noise, Position


def heun_step(denoise: Denoiser, x: Tensor, position: Position) -> tuple[Tensor, tuple[Call, ...]]:
    """(x', the two calls) from position.here to position.there; one call where position.there is clean."""
    first = denoise(x, position.here)
    guess = recompose(first, position.there)
    if position.there.is_clean():
        return guess, (Call(position.here, first),)
    second = denoise(guess, position.there)
    alpha, sigma = position.here.scales(x)
    alpha_next, sigma_next = position.there.scales(x)
    d_alpha, d_sigma = (alpha_next - alpha) / 2, (sigma_next - sigma) / 2
    x_next = x + d_alpha * (first.x0 + second.x0) + d_sigma * (first.eps + second.eps)
    return x_next, (Call(position.here, first), Call(position.there, second))


class Heun(Deterministic):
    """Order 2, two evaluations per step, one in the last."""

    kind: Literal["heun"] = "heun"

    @property
    def order(self) -> int:
        """Second, by the mean of two slopes."""
        return 2

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """The average of the slopes at `here` and at the Euler step's end."""
        return *heun_step(denoise, x, position), None
