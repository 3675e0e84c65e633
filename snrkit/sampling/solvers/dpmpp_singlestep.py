"""DPM-Solver++ of two evaluations a step with fresh noise, as k-diffusion has it, in any scaling.

A step to r' = sigma'/alpha' is made by the flow to r'' = r' sqrt(1 - f), and the rest of the noise is fresh:

    f = eta^2 (1 - snr/snr'),    x' = flow(x, to alpha', sigma' sqrt(1 - f)) + sigma' sqrt(f) s_noise n.

`dpmpp_2s_ancestral` follows the flow by DPM-Solver++(2S) (Lu et al. 2022), whose middle lies half-way to r''.

`dpmpp_sde` (DPM-Solver++ SDE) has its middle half-way to r' itself, and goes there in an ancestral step of its own, so
that the second answer knows of the noise of the first half. Both noises are those of one Brownian path over r,

    n = sqrt(a) n_1 + sqrt(1 - a) n_2,    a = (r - r_mid)/(r - r') = sigmoid(h/2),    h = ln(r/r'),

with n_1 that of the middle: without what they share the order would be 1.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.value import Value
from snrkit.diffusion.level import broadcast
from snrkit.diffusion.prediction import Denoiser
from snrkit.sampling.solvers.ancestral import added, kept, share_of, whole_share
from snrkit.sampling.solvers.euler import recompose
from snrkit.sampling.solvers.singlestep import by_midpoint, midway
from snrkit.sampling.step import Call, Memory, Noise, Position


class _Renewing(Value):
    """What both share."""

    eta: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="eta of DDIM (Song et al. 2021, eq. 16): 0 renews no noise, 1 as much as DDPM's posterior",
    )
    s_noise: float = Field(
        default=1.0, gt=0, description="standard deviation of the fresh noise over the one that the level asks for"
    )

    @property
    def order(self) -> int:
        """Second; of the distribution where noise is drawn."""
        return 2

    @property
    def renews(self) -> float | None:
        """All with eta 1, none with eta 0."""
        return whole_share(self.eta)


class Dpmpp2sAncestral(_Renewing):
    """Order 2, two evaluations per step, one in the last; no noise into the clean level."""

    kind: Literal["dpmpp_2s_ancestral"] = "dpmpp_2s_ancestral"

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """The midpoint's step to less noise than the next level has, and fresh noise up to it."""
        here, there = position.here, position.there
        first = denoise(x, here)
        if there.is_clean():
            return recompose(first, there), (Call(here, first),), None
        fresh = share_of(self.eta, there.logsnr - here.logsnr)
        end = kept(there, fresh)
        middle = midway(denoise.process, here, end.logsnr)
        second = denoise(recompose(first, middle), middle)
        x_next = by_midpoint(first, second, here, end)
        if self.eta:
            x_next = x_next + added(there, fresh, self.s_noise, noise(x))
        return x_next, (Call(here, first), Call(middle, second)), None


class DpmppSde(_Renewing):
    """Order 2, two evaluations and two draws of noise per step, one evaluation in the last, which draws none."""

    kind: Literal["dpmpp_sde"] = "dpmpp_sde"

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """An ancestral step to the middle, and one over the whole step with the answer that was given there."""
        here, there = position.here, position.there
        first = denoise(x, here)
        if there.is_clean():
            return recompose(first, there), (Call(here, first),), None
        middle = midway(denoise.process, here, there.logsnr)
        half = (middle.logsnr - here.logsnr).nan_to_num(0.0)  # pure noise is its own middle
        fresh, fresh_half = share_of(self.eta, there.logsnr - here.logsnr), share_of(self.eta, half)
        state = recompose(first, kept(middle, fresh_half))
        early, late = (noise(x), noise(x)) if self.eta else (None, None)
        if early is not None:
            state = state + added(middle, fresh_half, self.s_noise, early)
        second = denoise(state, middle)
        x_next = by_midpoint(first, second, here, kept(there, fresh))
        if early is not None and late is not None:
            common = torch.where(half > 0, torch.sigmoid(half / 2), 0.0)
            whole = broadcast(common.sqrt(), x) * early + broadcast((1 - common).sqrt(), x) * late
            x_next = x_next + added(there, fresh, self.s_noise, whole)
        return x_next, (Call(here, first), Call(middle, second)), None
