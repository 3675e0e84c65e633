"""Epsilon scaling (Ning et al. 2024, "Elucidating the exposure bias in diffusion models").

eps is divided by b(n) = scale + slope n, n the number of steps still to come after this one (0 in the last), and x0
follows from the state equation: x0' = x0 + (sigma/alpha)(1 - 1/b) eps. On an Euler step, in x/alpha, it equals the
Euler step of r = sigma/alpha to r' + (r - r')(1 - 1/b), in every scaling. It acts at every evaluation of a step, as in
the authors' `edm_sampler`, or at the first alone, as in their `ablation_sampler`; unlike DCW it leaves (1 - 1/b) sigma
eps in the finished image.
"""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Grown
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, rewrap
from snrkit.sampling.step import Position, Range


class EpsilonScaling(Grown):
    """Divide predicted noise by `scale` + `slope` * n; scale 1 with slope 0 is neutral.

    A step's first evaluation is told from its further ones by its level, which is the noisiest: that where the step
    begins, or the one to which a churn has noised the state.

    Undefined at alpha = 0 (a grid that starts at pure noise) and where the divisor is not above 0: SnrkitError.
    """

    later: ClassVar[tuple[str, ...]] = ("evaluation",)
    kind: Literal["epsilon_scaling"] = "epsilon_scaling"
    scale: float = Field(
        default=1.0,
        gt=0,
        description="what predicted noise is divided by in the last step, and in all at slope 0; 1 is neutral "
        "(the paper's b)",
    )
    slope: float = Field(default=0.0, description="added per step still to come (the paper's k)")
    evaluation: Literal["every", "first"] = Field(
        default="every",
        description="which evaluations of a step are divided, where the solver makes several: every one, or the first",
    )
    tunable: ClassVar[dict[str, Range]] = {
        "scale": Range(1.0, 0.9, 1.1, coarse=0.005, fine=0.001),
        "slope": Range(0.0, -0.01, 0.01, coarse=0.001, fine=0.0002),
    }

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The denoiser with its eps divided."""
        divisor = self.scale + self.slope * (len(position.grid) - 2 - position.index)
        if divisor == 1:
            return denoise
        if divisor <= 0:
            raise SnrkitError(
                f"epsilon_scaling divides by {divisor:g} in step {position.index} of this grid; "
                "lower slope or raise scale"
            )
        if bool((position.here.alpha == 0).any()):
            raise SnrkitError(
                "epsilon_scaling is undefined at alpha = 0, where this grid starts; "
                "choose a grid that starts below pure noise, such as uniform_logsnr"
            )

        def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None) -> Prediction:
            p = denoise(x, level, told=told, cond=cond)
            if self.evaluation == "first" and bool((level.logsnr > position.here.logsnr).any()):
                return p
            return replace(p, x0=p.x0 + level.ratio(x) * (1 - 1 / divisor) * p.eps, eps=p.eps / divisor)

        return rewrap(denoise, answer)
