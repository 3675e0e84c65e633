"""DPM-Solver++ (2M and 3M) of the reverse SDE, as k-diffusion has it, in any scaling.

With h the step in half-logsnr, the linear part of dx = ... + (1 + eta) x0 terms + noise is solved exactly:

    x' = alpha' x0 + sigma' e^(-eta h) eps + alpha' bend + sigma' sqrt(1 - e^(-2 eta h)) s_noise n,

the step of the flow to r' e^(-eta h), r = sigma/alpha, and fresh noise up to r'. So the share of fresh noise is
f = 1 - (snr/snr')^eta: with eta 1 that of `ancestral`, with another eta not that of DDIM, and eta may exceed 1. The
bend integrates x0 through past predictions against the kernel of e^(-(1 + eta) h): for `dpmpp_2m_sde` by the midpoint
weight of dpmpp_2m, for `dpmpp_3m_sde` by the parabola of dpmpp_3m, whose quadratic term the published form halves.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.value import Value
from snrkit.diffusion.prediction import Denoiser, Prediction
from snrkit.sampling.solvers.ancestral import added, kept, whole_share
from snrkit.sampling.solvers.dpmpp import bending, curved, leaning
from snrkit.sampling.solvers.euler import recompose
from snrkit.sampling.solvers.multistep import Past, remember
from snrkit.sampling.step import Call, Memory, Noise, Position


class Sde(Value):
    """What both share: Euler's step of the SDE, and its noise."""

    eta: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="strength of the SDE's noise: a step of h nats of logsnr renews the share 1 - exp(-eta h) of its "
        "variance; 0 is the flow, 1 as much as DDPM's posterior",
    )
    s_noise: float = Field(
        default=1.0, gt=0, description="standard deviation of the fresh noise over the one that the level asks for"
    )

    @property
    def renews(self) -> float | None:
        """All with eta 1, none with eta 0."""
        return whole_share(self.eta)

    def _straight(self, prediction: Prediction, position: Position, noise: Noise) -> Tensor:
        """The step of order 1; x0 into the clean level, without noise."""
        there = position.there
        if self.eta == 0 or there.is_clean():
            return recompose(prediction, there)
        fresh = -torch.expm1(self.eta * (position.here.logsnr - there.logsnr))
        return recompose(prediction, kept(there, fresh)) + added(there, fresh, self.s_noise, noise(prediction.x0))


class Dpmpp2mSde(Sde):
    """Order 2, one evaluation per step; first order in the first step and into the clean level.

    Memory: (x0 of the last step, its logsnr).
    """

    kind: Literal["dpmpp_2m_sde"] = "dpmpp_2m_sde"

    @property
    def order(self) -> int:
        """Second; of the distribution where noise is drawn."""
        return 2

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Extrapolate x0 linearly in logsnr from the last two predictions."""
        prediction = denoise(x, position.here)
        x_next = self._straight(prediction, position, noise)
        if memory is not None and not position.there.is_clean():
            x_next = x_next + leaning(prediction.x0, position, memory, 1 + self.eta)
        return x_next, (Call(position.here, prediction),), (prediction.x0, position.here.logsnr)


class Dpmpp3mSde(Sde):
    """Order 3 with eta 0, 2 with noise, one evaluation per step; less in the first two and into the clean level.

    Predictions of the past do not know of the noise since, so that no more of them gives a higher order with noise.
    Memory: (x0, half-logsnr) of the last two steps, newest first.
    """

    kind: Literal["dpmpp_3m_sde"] = "dpmpp_3m_sde"
    published: bool = Field(
        default=False, description="halve the quadratic term, as k-diffusion does: order 2 with eta 0 too"
    )

    @property
    def order(self) -> int:
        """3 without noise in the unhalved form, else 2."""
        return 2 if self.eta or self.published else 3

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """The parabola of x0 in half-logsnr through the last three predictions, integrated."""
        prediction = denoise(x, position.here)
        x_next, now = self._straight(prediction, position, noise), position.here.logsnr / 2
        past: Past = memory or ()
        if past and not position.there.is_clean():
            stretched = (1 + self.eta) * (position.there.logsnr / 2 - now)
            moments = curved(stretched, self.published)[: len(past)]
            x_next = x_next + bending(prediction.x0, position, past, moments)
        return x_next, (Call(position.here, prediction),), remember(prediction.x0, now, past, 2)
