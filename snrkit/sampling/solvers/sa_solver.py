"""SA-Solver (Xue et al. 2023, "SA-Solver: stochastic Adams solver for fast sampling of diffusion models", arXiv
2309.05019), in data prediction and PEC mode, for any scaling.

It solves the family of SDEs whose noise is tau^2 times that of the reverse SDE; tau^2 is `eta` here. With h the step in
half-logsnr, the linear part is solved exactly (their equation 14 in the scaling of any process),

    x' = alpha' x0 + sigma' e^(-eta h) eps + alpha' bend + sigma' sqrt(1 - e^(-2 eta h)) n,
    bend = (1 + eta) int_0^h e^(-(1 + eta)(h - u)) (P(u) - x0) du,

P the polynomial in half-logsnr through the last `predictor` predictions. The corrector (equation 17) is the same step
with the same noise and P through the prediction at its end too, `corrector` predictions in all; it costs no evaluation.
Integrals are exact at every order; the released code replaces one of them at order 2.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import Denoiser, Prediction
from snrkit.sampling.solvers.dpmpp_multistep_sde import Sde
from snrkit.sampling.solvers.multistep import Past, exponential_moments, increment, remember
from snrkit.sampling.step import Call, Memory, Noise, Position


@dataclass(frozen=True, slots=True)
class SaMemory:
    """The last step: its x0 and half-logsnr, the predictions before it, what P bent, and where it was to go."""

    x0: Tensor
    when: Tensor
    past: Past
    bent: Tensor
    there: Level


class SaSolver(Sde):
    """One evaluation per step; fewer predictions in the first steps and, into a clean level, in the last ones."""

    kind: Literal["sa_solver"] = "sa_solver"
    predictor: int = Field(default=3, ge=1, le=4, description="predictions of x0 that each step uses, its own counted")
    corrector: int = Field(
        default=4,
        ge=0,
        le=4,
        description="predictions of x0 by which each state is corrected, that at its end counted: 2 to 4; 0: none is",
    )

    @model_validator(mode="after")
    def _has_an_end(self) -> "SaSolver":
        if self.corrector == 1:
            raise ValueError("corrector 1 would leave out the prediction that the step began with; give 0, or 2 to 4")
        return self

    @property
    def order(self) -> int:
        """By interpolation without noise; with noise 2 at most, as past predictions do not know of it."""
        order = self.predictor + (self.corrector > self.predictor)
        return min(order, 2) if self.eta else order

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Correct the state with the new prediction, then predict the next one."""
        asked = denoise(x, position.here)
        now, past = position.here.logsnr / 2, _past(memory)
        prediction = asked
        if memory is not None and self.corrector:
            change = self._correction(memory, asked.x0, now)
            prediction = Prediction(asked.x0, asked.eps + change / broadcast(position.here.sigma, change))
        left = len(position.grid) - 2 - position.index if position.grid[-1].is_clean() else self.predictor
        used = past[: min(self.predictor - 1, left)]
        h, bent = position.there.logsnr / 2 - now, torch.zeros_like(x)
        if used and not position.there.is_clean():
            bent = self._bend(asked.x0, used, now, h, position.there)
        x_next = self._straight(prediction, position, noise) + bent
        return x_next, (Call(position.here, asked),), SaMemory(asked.x0, now, past, bent, position.there)

    def _bend(self, x0: Tensor, others: Past, when: Tensor, h: Tensor, there: Level) -> Tensor:
        """alpha' times what the polynomial through x0 and others adds to a step of h from `when`."""
        moments = exponential_moments((1 + self.eta) * h, len(others))
        nodes = [(then - when) / h for _, then in others]
        return broadcast(there.alpha, x0) * increment([value for value, _ in others], x0, nodes, moments)

    def _correction(self, memory: SaMemory, x0: Tensor, now: Tensor) -> Tensor:
        """corrected - predicted of the last step, now that its end's prediction `x0` is known."""
        if bool(memory.when.isinf().any()):  # a step from pure noise, whose kernel has no polynomials
            return torch.zeros_like(x0)
        others, h = ((x0, now), *memory.past[: self.corrector - 2]), memory.there.logsnr / 2 - memory.when
        return self._bend(memory.x0, others, memory.when, h, memory.there) - memory.bent


def _past(memory: SaMemory | None) -> Past:
    return () if memory is None else remember(memory.x0, memory.when, memory.past, 3)
