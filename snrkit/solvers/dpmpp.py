"""DPM-Solver++ (Lu et al. 2022), in data prediction, for any scaling.

With h the step in half-logsnr, the first-order step x' = (sigma'/sigma) x - alpha' expm1(-h) x0 is Euler's.
The second order adds a difference of predictions,

    x' = alpha' x0 + sigma' eps - alpha' expm1(-h) (x0 - x0_last) h/(2 h_last),

diffusers' default (midpoint). Written so, nothing divides by alpha.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from snrkit.level import broadcast
from snrkit.prediction import Denoiser
from snrkit.solvers.euler import recompose
from snrkit.step import Call, Memory, Noise, Place
from snrkit.value import Value


class Dpmpp2m(Value):
    """Order 2, one evaluation per step; first order in the first step and into the clean level.

    Memory: (x0 of the last step, its logsnr).
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    order: ClassVar[int] = 2

    def step(
        self, denoise: Denoiser, x: Tensor, place: Place, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """Extrapolate x0 linearly in logsnr from the last two predictions."""
        prediction = denoise(x, place.here)
        x_next = recompose(prediction, place.there)
        if memory is not None and not place.there.is_clean():
            x0_last, logsnr_last = memory
            ahead, behind = place.there.logsnr - place.here.logsnr, place.here.logsnr - logsnr_last
            gain = -place.there.alpha * torch.expm1(-ahead / 2) * ahead / (2 * behind)
            x_next = x_next + broadcast(gain, x) * (prediction.x0 - x0_last)
        return x_next, (Call(place.here, prediction),), (prediction.x0, place.here.logsnr)
