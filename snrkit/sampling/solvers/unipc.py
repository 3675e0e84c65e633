"""UniPC (Zhao et al. 2023) in data prediction, with B(h) = expm1(h) ("bh2"), for any scaling.

Predictor: x0 as the polynomial in half-logsnr through the last p predictions, integrated exactly (at p = 2 with the
midpoint weight 1/2, as published). Corrector: once the next prediction is known, the same step again with it as one
more node; it costs no evaluation, as the prediction is the one that the next step needs anyway.

The corrector is applied as an increment, x + (corrected - predicted), so that what a correction did to the state after
the step is kept.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import Denoiser, Prediction
from snrkit.sampling.solvers.euler import recompose
from snrkit.sampling.solvers.multistep import Past, exponential_moments, increment, midpoint_moment, remember
from snrkit.sampling.step import Call, Deterministic, Memory, Noise, Position


@dataclass(frozen=True, slots=True)
class UnipcMemory:
    """The last step: its prediction, the predictions before it as (x0, half-logsnr), and where it went."""

    prediction: Prediction  # that of the step, re-centred on the corrected state
    when: Tensor
    past: Past
    predicted: Tensor
    there: Level  # where it was meant to go; the next step may begin elsewhere (time shift)
    order: int


class Unipc(Deterministic):
    """Order p + 1 by the corrector, one evaluation per step; first order into the clean level.

    `lower_order_final`: the last steps into a clean level are of order 2 and 1, as in diffusers; it matters at p 3.
    """

    kind: Literal["unipc"] = "unipc"
    p: int = Field(default=2, ge=1, le=3, description="order of the predictor")
    corrector: bool = Field(
        default=True, description="correct each state once the prediction at it is known, which costs no evaluation"
    )
    lower_order_final: bool = Field(
        default=True,
        description="take orders 2 and 1 in the last steps into the clean level, as diffusers does; it matters at p 3",
    )

    @property
    def order(self) -> int:
        """p + 1, or p without the corrector."""
        return self.p + self.corrector

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Correct the state with the new prediction, then predict the next one."""
        asked = denoise(x, position.here)
        now, past = position.here.logsnr / 2, _past(memory, self.p)
        prediction = asked
        if memory is not None and self.corrector:
            prediction = _moved(asked, _correction(memory, asked.x0, position.here), position.here)
        order = min(self.p, len(past) + 1, self._left(position))
        predicted = _predict(prediction, now, past[: order - 1], position.there)
        kept = UnipcMemory(prediction, now, past, predicted, position.there, order)
        return predicted, (Call(position.here, asked),), kept

    def _left(self, position: Position) -> int:
        left = len(position.grid) - 1 - position.index
        return left if self.lower_order_final and position.grid[-1].is_clean() else self.p


def _past(memory: UnipcMemory | None, p: int) -> Past:
    return () if memory is None else remember(memory.prediction.x0, memory.when, memory.past, p - 1)


def _moved(prediction: Prediction, change: Tensor, level: Level) -> Prediction:
    """The same x0 on the state moved by `change`; eps follows from the state equation."""
    return Prediction(prediction.x0, prediction.eps + change / broadcast(level.sigma, change))


def _predict(prediction: Prediction, now: Tensor, past: Past, there: Level) -> Tensor:
    """The predictor through the given past: Euler's step where there is none."""
    x_next = recompose(prediction, there)
    if not past or there.is_clean():
        return x_next
    h = there.logsnr / 2 - now
    moments = [midpoint_moment(h)] if len(past) == 1 else exponential_moments(h, len(past))
    nodes = [(then - now) / h for _, then in past]
    bent = increment([x0 for x0, _ in past], prediction.x0, nodes, moments)
    return x_next + broadcast(there.alpha, x_next) * bent


def _correction(memory: UnipcMemory, x0: Tensor, here: Level) -> Tensor:
    """corrected - predicted of the last step, now that its end's prediction `x0` is known."""
    past, there = memory.past[: memory.order - 1], memory.there
    h = there.logsnr / 2 - memory.when
    moments = [midpoint_moment(h)] if not past else exponential_moments(h, len(past) + 1)
    nodes = [*((then - memory.when) / h for _, then in past), _node(here, memory, h)]
    bent = increment([*(value for value, _ in past), x0], memory.prediction.x0, nodes, moments)
    corrected = recompose(memory.prediction, there) + broadcast(there.alpha, x0) * bent
    return corrected - memory.predicted


def _node(here: Level, memory: UnipcMemory, h: Tensor) -> Tensor:
    """Where the new prediction stands in the last step: 1, but for a level that was moved."""
    if here is memory.there or bool(h.isinf().any()):
        return torch.ones_like(here.logsnr)
    return (here.logsnr / 2 - memory.when) / h
