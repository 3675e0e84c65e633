"""DEIS (Zhang & Chen 2023): the linear part exactly, eps as a polynomial in time through past predictions (tAB-DEIS).

In x/alpha and r = sigma/alpha the dynamics are d(x/alpha) = eps dr, so that with the Lagrange polynomials l_i over the
time of the last k predictions

    x' = alpha' x0 + sigma' eps + alpha' sum_i (integral of l_i dr from r to r') (eps_i - eps).

`variable` is what eps is a polynomial in: `time`, which the network reads (of ddpm the index of its table, of flow t),
or `logsnr`, as diffusers' DEISMultistepScheduler has it ("logrho"; of edm it is the network's time). A polynomial in r
is rhoAB-DEIS, which is `ipndm_v`. The integrals are taken by Gauss's rule in logsnr.
"""

from functools import cache
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from snrkit.diffusion.level import broadcast
from snrkit.diffusion.prediction import Denoiser
from snrkit.diffusion.process import Process
from snrkit.sampling.solvers.euler import recompose
from snrkit.sampling.solvers.multistep import Past, increment, remember
from snrkit.sampling.step import Call, Deterministic, Memory, Noise, Position

POINTS = 32  # of the rule: exact to rounding for steps of up to 20 nats


class Deis(Deterministic):
    """Order k, one evaluation per step; fewer predictions are used in the first steps, one into the clean level.

    Memory: (eps, its time or logsnr) of the last k - 1 steps, newest first.
    """

    kind: Literal["deis"] = "deis"
    k: int = Field(
        default=3,
        ge=1,
        le=4,
        description="predictions of eps that each step uses, its own counted, and the order; fewer in the first steps",
    )
    variable: Literal["time", "logsnr"] = Field(
        default="time",
        description="what eps is a polynomial in: time, as the network reads it (tAB-DEIS), or logsnr, as in diffusers",
    )

    @property
    def order(self) -> int:
        """k, as of any interpolation."""
        return self.k

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Euler's step, and the integral of what eps bends."""
        prediction = denoise(x, position.here)
        x_next, now = recompose(prediction, position.there), self._place(denoise.process, position.here.logsnr)
        past: Past = memory or ()
        if past and not position.there.is_clean():
            width = self._place(denoise.process, position.there.logsnr) - now
            nodes = [(then - now) / width for _, then in past]
            moments = self._moments(denoise.process, position, now, width, len(past))
            bent = increment([eps for eps, _ in past], prediction.eps, nodes, moments)
            x_next = x_next + broadcast(position.there.alpha, x) * bent
        return x_next, (Call(position.here, prediction),), remember(prediction.eps, now, past, self.k - 1)

    def _place(self, process: Process, logsnr: Tensor) -> Tensor:
        return logsnr if self.variable == "logsnr" else process.time(logsnr)

    def _moments(self, process: Process, position: Position, now: Tensor, width: Tensor, count: int) -> list[Tensor]:
        """The integrals of u^n dr over the step, n = 1..count, with u from 0 to 1 in the variable."""
        points, weights = gauss()
        low, gap = position.here.logsnr.unsqueeze(-1), (position.there.logsnr - position.here.logsnr).unsqueeze(-1)
        logsnr = low + gap * points
        u = (self._place(process, logsnr) - now.unsqueeze(-1)) / width.unsqueeze(-1)
        measure = -gap / 2 * torch.exp(-logsnr / 2) * weights  # dr = -r d(logsnr)/2
        return [_summed(measure * u**n) for n in range(1, count + 1)]


def _summed(parts: Tensor) -> Tensor:
    """Over the last axis, one after the other: a batch of levels then has the bits of each of them alone."""
    return parts.cumsum(-1)[..., -1]


@cache
def gauss() -> tuple[Tensor, Tensor]:
    """(points, weights) of Gauss's rule on [0, 1], float64."""
    points, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(POINTS))
    return (points + 1) / 2, weights / 2
