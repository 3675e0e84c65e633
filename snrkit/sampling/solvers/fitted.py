"""A step fitted to the network's own flow (docs/fitted.md): a base solver's, and increments by least squares,

    x' = base(x) + sum_band P_band [a x0_hat_k + b eps_hat_k + c eps_hat_(k-1) + d eps_hat_(k-2)]

x0_hat and eps_hat of the step's last evaluation and the eps_hat of `history` steps before it, P_band the projection on
Haar's low band or on its three high ones. As x = alpha x0_hat + sigma eps_hat, the span of x0_hat and eps_hat holds, in
every scaling, Euler, DCW in pixels and a constant scaling of eps; with the eps_hat before them it holds Adams-Bashforth
on eps with up to history + 1 predictions (ipndm, ipndm_v). Earlier states are no terms, nor is then an earlier x0_hat,
so that multistep solvers of the data prediction (DPM-Solver++, UniPC) are in it as the base alone. By band it is DCW
with coefficients of its own for each step and band. The coefficients of a sampler are its run's (`snrkit tune --by
flow`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from snrkit.base.value import Value
from snrkit.base.wavelet import low_part
from snrkit.diffusion.prediction import Denoiser, Prediction
from snrkit.sampling.solvers.deis import Deis
from snrkit.sampling.solvers.dpm_2 import Dpm2
from snrkit.sampling.solvers.dpmpp import Dpmpp2m, Dpmpp3m
from snrkit.sampling.solvers.euler import Euler
from snrkit.sampling.solvers.heun import Heun
from snrkit.sampling.solvers.ipndm import Ipndm, IpndmV
from snrkit.sampling.solvers.unipc import Unipc
from snrkit.sampling.step import Call, Fit, Memory, Noise, Position, add_terms

Base = Euler | Heun | Dpm2 | Dpmpp2m | Dpmpp3m | Unipc | Ipndm | IpndmV | Deis  # solvers that draw no noise
AnyBase = Annotated[Base, Field(discriminator="kind")]
LONGEST_HISTORY = 3


class Increments(Value):
    """Steps of `base` and what was fitted beyond them; it costs what `base` does. Without a fit it cannot sample."""

    kind: Any
    base: AnyBase = Field(
        default=Ipndm(), description="solver without fresh noise whose steps are made, before what is fitted is added"
    )
    history: int = Field(default=2, ge=0, description="predictions of earlier steps that it takes")
    bands: Literal["none", "haar"] = Field(default="none", description="haar: coefficients of their own by band")

    @property
    def order(self) -> int:
        """That of the base, whose steps it makes where nothing was gained."""
        return self.base.order

    @property
    def terms(self) -> int:
        """The coefficients of a step: x0, eps and the eps before it, for each band."""
        return (2 + self.history) * (2 if self.bands == "haar" else 1)

    def with_fit(self, fit: Fit) -> "FittedSteps":
        """The solver with its coefficients."""
        return FittedSteps(self, fit)


class Fitted(Increments):
    """Coefficients step after step, each step fitted to the flow at its end."""

    kind: Literal["fitted"] = "fitted"
    history: int = Field(default=2, ge=0, le=LONGEST_HISTORY, description="predictions of earlier steps that it takes")


class Bns(Increments):
    """Coefficients of all steps at once, by gradient descent on the distance to the flow at the clean end.

    A bespoke non-stationary solver (Shaul et al. 2024, arXiv 2403.01329) in the prediction of eps, on the levels of the
    grid, which the paper learns too. There step k is a combination of the first noise and of all predictions so far;
    with a base of one evaluation a step and a history that reaches back to the first, x0_hat_k and eps_hat_0..k span
    the same, as every state is such a combination. Learned from the base on, by L-BFGS (the paper: Adam).
    """

    kind: Literal["bns"] = "bns"
    history: int = Field(
        default=15, ge=0, le=99, description="predictions of earlier steps that it takes; the paper takes all of them"
    )
    rounds: int = Field(
        default=50, ge=1, le=10_000, description="iterations of L-BFGS, each a walk or a few, with gradients"
    )


@dataclass(frozen=True, slots=True)
class FittedSteps:
    """The steps of a base with the coefficients of a fit. Memory: (that of the base, the eps before, newest first)."""

    value: Increments
    fit: Fit

    @property
    def order(self) -> int:
        """That of the base."""
        return self.value.base.order

    @property
    def renews(self) -> float | None:
        """0, as that of every base."""
        return self.value.base.renews

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """The step of the base and its increments."""
        of_base, past = memory or (None, ())
        x_next, calls, of_base = self.value.base.step(denoise, x, position, of_base, noise)
        terms, past = fitted_terms(self.value, calls[-1].prediction, past)
        return add_terms(x_next, terms, self.fit, position.index), calls, (of_base, past)


def fitted_terms(
    value: Increments, said: Prediction, past: tuple[Tensor, ...]
) -> tuple[Sequence[Tensor], tuple[Tensor, ...]]:
    """(The terms of a step, all eps that the next one may use), of what was said and the eps before, newest first."""
    terms = (said.x0, said.eps, *past)
    return by_band(terms) if value.bands == "haar" else terms, (said.eps, *past)[: value.history]


def by_band(terms: Sequence[Tensor]) -> list[Tensor]:
    """The low and the high part of each term (B, C, H, W), one after the other."""
    lows = [low_part(term) for term in terms]
    return [part for term, low in zip(terms, lows, strict=True) for part in (low, term - low)]
