"""Epsilon scaling (Ning et al. 2024, "Elucidating the exposure bias in diffusion models").

eps is divided by a constant, x0 follows from the state equation: x0' = x0 + (sigma/alpha)(1 - 1/scale) eps. On an Euler
step, in x/alpha, it equals the Euler step of r = sigma/alpha to r' + (r - r')(1 - 1/scale), in every scaling.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from snrkit.errors import SnrkitError
from snrkit.level import Level
from snrkit.prediction import SAME, Cond, Denoiser, Prediction, Same, rewrap
from snrkit.step import Place
from snrkit.value import Value


class EpsilonScaling(Value):
    """Divide predicted noise by `scale` at every evaluation; 1 is neutral.

    Undefined at alpha = 0 (a grid that starts at pure noise): SnrkitError.
    """

    kind: Literal["epsilon_scaling"] = "epsilon_scaling"
    scale: float = Field(1.0, gt=0)

    def wrap(self, denoise: Denoiser, place: Place) -> Denoiser:
        """The denoiser with its eps divided."""
        if self.scale == 1:
            return denoise
        if bool((place.here.alpha == 0).any()):
            raise SnrkitError(
                "epsilon_scaling is undefined at alpha = 0, where this grid starts; "
                "choose a grid that starts below pure noise"
            )

        def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None) -> Prediction:
            p = denoise(x, level, told=told, cond=cond)
            return Prediction(p.x0 + level.ratio(x) * (1 - 1 / self.scale) * p.eps, p.eps / self.scale)

        return rewrap(denoise, answer)
