"""Ancestral sampling: Euler's step with part of its noise replaced by fresh noise.

    x' = alpha' x0 + sigma' (sqrt(1 - f) eps + sqrt(f) n),    f = eta^2 (1 - snr/snr')

eta is DDIM's (Song et al. 2021, eq. 16) in every scaling: 0 is Euler, 1 has the variance of DDPM's posterior (Ho et al.
2020, eq. 7) and is k-diffusion's euler_ancestral.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.level import broadcast
from snrkit.prediction import Denoiser
from snrkit.solvers.euler import recompose
from snrkit.step import Call, Memory, Noise, Place
from snrkit.value import Value


class Ancestral(Value):
    """Order 1 (in the distribution), one evaluation per step."""

    kind: Literal["ancestral"] = "ancestral"
    eta: float = Field(1.0, ge=0, le=1)
    order: ClassVar[int] = 1

    def step(
        self, denoise: Denoiser, x: Tensor, place: Place, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Euler's step with the fraction f of the noise's variance renewed; no noise into the clean level."""
        prediction = denoise(x, place.here)
        calls = (Call(place.here, prediction),)
        if self.eta == 0 or place.there.is_clean():
            return recompose(prediction, place.there), calls, None
        alpha, sigma = place.there.scales(x)
        fresh = self.eta**2 * -torch.expm1(place.here.logsnr - place.there.logsnr)
        kept, renewed = broadcast((1 - fresh).sqrt(), x), broadcast(fresh.sqrt(), x)
        return alpha * prediction.x0 + sigma * (kept * prediction.eps + renewed * noise(x)), calls, None
