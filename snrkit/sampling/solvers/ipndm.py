"""Improved PNDM (Zhang & Chen 2023; Liu et al. 2022): Adams-Bashforth on the predicted noise.

In x/alpha and r = sigma/alpha the dynamics are d(x/alpha) = eps dr, so with eps extrapolated as a polynomial

    x' = alpha' x0 + sigma' eps + (sigma' - alpha' sigma/alpha) sum_i w_i (eps_i - eps).

`ipndm` takes the weights of equal steps whatever the grid, as published: 3/2, -1/2; 23/12, -16/12, 5/12; and so on.
`ipndm_v` takes those of the steps in r that were made.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.diffusion.level import broadcast
from snrkit.diffusion.prediction import Denoiser
from snrkit.sampling.solvers.euler import recompose
from snrkit.sampling.solvers.multistep import Past, increment, remember
from snrkit.sampling.step import Call, Deterministic, Memory, Noise, Position


def _step(
    denoise: Denoiser, x: Tensor, position: Position, past: Past, length: int, equal: bool
) -> tuple[Tensor, tuple[Call, ...], Past]:
    """One step through `past`, pairs (eps, sigma/alpha), newest first."""
    prediction = denoise(x, position.here)
    x_next = recompose(prediction, position.there)
    ratio, ratio_next = position.here.sigma / position.here.alpha, position.there.sigma / position.there.alpha
    if past:
        width = ratio_next - ratio
        made = [(then - ratio) / width for _, then in past]
        nodes = [torch.full_like(width, -1.0 - i) for i in range(len(past))] if equal else made
        bent = increment([eps for eps, _ in past], prediction.eps, nodes, [1 / (n + 2) for n in range(len(past))])
        x_next = x_next + broadcast(position.there.alpha * width, x) * bent
    return x_next, (Call(position.here, prediction),), remember(prediction.eps, ratio, past, length)


class Ipndm(Deterministic):
    """Order 2 on smooth grids, one evaluation per step; `k` predictions are used, fewer in the first steps."""

    kind: Literal["ipndm"] = "ipndm"
    k: int = Field(
        default=4,
        ge=1,
        le=4,
        description="predictions of eps that each step uses, its own counted; fewer in the first steps",
    )

    @property
    def order(self) -> int:
        """2, as the weights of equal steps are wrong by one order on steps that change slowly."""
        return min(self.k, 2)

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Adams-Bashforth of equal steps."""
        return _step(denoise, x, position, memory or (), self.k - 1, True)


class IpndmV(Deterministic):
    """Order k, one evaluation per step; fewer predictions are used in the first steps."""

    kind: Literal["ipndm_v"] = "ipndm_v"
    k: int = Field(
        default=3,
        ge=1,
        le=4,
        description="predictions of eps that each step uses, its own counted, and the order; fewer in the first steps",
    )

    @property
    def order(self) -> int:
        return self.k

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Adams-Bashforth of the steps that were made."""
        return _step(denoise, x, position, memory or (), self.k - 1, False)
