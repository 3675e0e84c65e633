"""DPM-Solver++ (Lu et al. 2022), in data prediction, for any scaling.

With h the step in half-logsnr, the first-order step x' = (sigma'/sigma) x - alpha' expm1(-h) x0 is Euler's.
The second order adds a difference of predictions,

    x' = alpha' x0 + sigma' eps - alpha' expm1(-h) (x0 - x0_last) h/(2 h_last),

diffusers' default (midpoint). The third order integrates the parabola through three predictions exactly; the published
form halves its quadratic term and is of order 2. Written so, nothing divides by alpha.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.diffusion.level import broadcast
from snrkit.diffusion.prediction import Denoiser
from snrkit.sampling.solvers.euler import recompose
from snrkit.sampling.solvers.multistep import Past, exponential_moments, increment, midpoint_moment, remember
from snrkit.sampling.step import Call, Deterministic, Memory, Noise, Position

FEW = 15  # steps, below which diffusers lowers the order at the end


def leaning(x0: Tensor, position: Position, last: tuple[Tensor, Tensor], stretch: float = 1.0) -> Tensor:
    """What the prediction before adds to the step: -alpha' expm1(-stretch h) (x0 - x0_last) h/(2 h_last).

    `last` is its (x0, logsnr); a `stretch` beside 1 is that of a step with fresh noise.
    """
    x0_last, logsnr_last = last
    ahead, behind = position.there.logsnr - position.here.logsnr, position.here.logsnr - logsnr_last
    gain = -position.there.alpha * torch.expm1(-stretch * ahead / 2) * ahead / (2 * behind)
    return broadcast(gain, x0) * (x0 - x0_last)


def bending(x0: Tensor, position: Position, past: Past, moments: Sequence[Tensor]) -> Tensor:
    """What the polynomial through past predictions (x0, half-logsnr) adds to the step, with its kernel's moments."""
    now = position.here.logsnr / 2
    h = position.there.logsnr / 2 - now
    nodes = [(then - now) / h for _, then in past]
    return broadcast(position.there.alpha, x0) * increment([value for value, _ in past], x0, nodes, moments)


def curved(h: Tensor, published: bool) -> list[Tensor]:
    """The moments of a parabola's step, the second halved as published."""
    first, second = exponential_moments(h, 2)
    return [first, second / 2 if published else second]


class Dpmpp2m(Deterministic):
    """Order 2, one evaluation per step; first order in the first step and into the clean level.

    Memory: (x0 of the last step, its logsnr).
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"

    @property
    def order(self) -> int:
        """Second, by the prediction before."""
        return 2

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Extrapolate x0 linearly in logsnr from the last two predictions."""
        prediction = denoise(x, position.here)
        x_next = recompose(prediction, position.there)
        if memory is not None and not position.there.is_clean():
            x_next = x_next + leaning(prediction.x0, position, memory)
        return x_next, (Call(position.here, prediction),), (prediction.x0, position.here.logsnr)


class Dpmpp3m(Deterministic):
    """Order 3, one evaluation per step; lower orders in the first two steps, first order into the clean level.

    `published: true` halves the quadratic term, as the paper and diffusers do: order 2. `lower_order_final`: on grids
    of fewer than 15 steps the last but one into a clean level is of order 2, as in diffusers.
    Memory: (x0, half-logsnr) of the last two steps, newest first.
    """

    kind: Literal["dpmpp_3m"] = "dpmpp_3m"
    published: bool = Field(
        default=False, description="halve the quadratic term, as the paper and diffusers do: order 2"
    )
    lower_order_final: bool = Field(
        default=True,
        description="take order 2 in the last step but one of grids of fewer than 15 steps, as diffusers does",
    )

    @property
    def order(self) -> int:
        """3, or 2 in the published form."""
        return 2 if self.published else 3

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """The parabola of x0 in half-logsnr through the last three predictions, integrated."""
        prediction = denoise(x, position.here)
        x_next, now = recompose(prediction, position.there), position.here.logsnr / 2
        past: Past = (memory or ())[: 1 if self._ends(position) else 2]
        if past and not position.there.is_clean():
            h = position.there.logsnr / 2 - now
            moments = [midpoint_moment(h)] if len(past) == 1 else curved(h, self.published)
            x_next = x_next + bending(prediction.x0, position, past, moments)
        return x_next, (Call(position.here, prediction),), remember(prediction.x0, now, past, 2)

    def _ends(self, position: Position) -> bool:
        steps = len(position.grid) - 1
        short = self.lower_order_final and steps < FEW and position.grid[-1].is_clean()
        return short and position.index == steps - 2
