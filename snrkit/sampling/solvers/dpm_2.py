"""DPM-Solver-2 (Lu et al. 2022, algorithm 1 with r_1 = 1/2), k-diffusion's dpm_2: the midpoint rule on eps.

In x/alpha and r = sigma/alpha the dynamics are d(x/alpha) = eps dr; eps of the whole step is that of the Euler state at
the geometric mean of r and r', half-way in logsnr:

    x'/alpha' = x/alpha + (r' - r) eps_mid,   or   x' = alpha' x0 + sigma' eps + (sigma' - alpha' r) (eps_mid - eps),

the same path in every scaling.
"""

from typing import Literal

import torch
from torch import Tensor

from snrkit.diffusion.level import broadcast
from snrkit.diffusion.prediction import Denoiser
from snrkit.sampling.solvers.euler import recompose
from snrkit.sampling.solvers.singlestep import midway
from snrkit.sampling.step import Call, Deterministic, Memory, Noise, Position


class Dpm2(Deterministic):
    """Order 2, two evaluations per step; from pure noise and into the clean level it is Euler, there of one evaluation.

    Without churn, which k-diffusion adds under the same name and leaves off by default.
    """

    kind: Literal["dpm_2"] = "dpm_2"

    @property
    def order(self) -> int:
        """Second, by the midpoint."""
        return 2

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Euler's step, with eps of its middle."""
        here, there = position.here, position.there
        first = denoise(x, here)
        guess = recompose(first, there)
        if there.is_clean():
            return guess, (Call(here, first),), None
        middle = midway(denoise.process, here, there.logsnr)
        second = denoise(recompose(first, middle), middle)
        width = torch.where(here.alpha > 0, there.sigma - there.alpha * here.sigma / here.alpha, 0.0)
        x_next = guess + broadcast(width, x) * (second.eps - first.eps)
        return x_next, (Call(here, first), Call(middle, second)), None
