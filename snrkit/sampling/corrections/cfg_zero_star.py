"""CFG-Zero* (Fan et al. 2025, "CFG-Zero*: improved classifier-free guidance for flow matching models", arXiv
2503.18886): classifier-free guidance with an optimised scale, and first steps that stand still.

With v = eps - x0 the velocity of flow matching, v_c with the label and v_u without, image by image:

    s = <v_c, v_u>/<v_u, v_u>                        which brings s v_u nearest to v_c
    v = v_c + weight (v_c - s v_u)                   the paper's (1 - w) s v_u + w v_c, w = 1 + weight
    v = 0                                            in the first steps

x0 and eps follow from v and the state. In the flow scaling v is the velocity of the state, and one that stands still is
the same at the next level. In vp and ve, which the paper does not treat, v is that of the state brought to the flow
scaling, x/(alpha + sigma), which is what then stands still. With scale 1 and no such steps it is cfg.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, FlowVelocity, Prediction, Same, rewrap, solve
from snrkit.sampling.corrections.guidance import LabelGuidance, Term, guide, weight_at
from snrkit.sampling.step import Position

STILL = 2  # the phase of the first steps


class CfgZeroStar(LabelGuidance):
    """Guide by label with the optimised scale of the unlabelled velocity; stand still in the first `zero_steps`.

    Steps that stand still are guided ones: outside the interval of the guidance, and at weight 0, there are none. The
    network is asked in them too, once, so that every step has an answer to be measured.
    """

    kind: Literal["cfg_zero_star"] = "cfg_zero_star"
    scale: Literal["optimised", "one"] = Field(
        default="optimised", description="factor of the unlabelled velocity: the one that fits best, or 1 as in cfg"
    )
    zero_steps: int = Field(
        default=1, ge=0, le=10_000, description="steps at the start of a grid in which the velocity is 0"
    )

    @property
    def everywhere(self) -> bool:
        """Not where the first steps differ."""
        return super().everywhere and self.zero_steps == 0

    def phase(self, position: Position) -> int:
        """0, guided, or standing still."""
        guided = super().phase(position)
        return STILL if guided and position.index < self.zero_steps else guided

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The guided denoiser, which needs a condition with labels, or one that says that nothing moves."""
        weight = weight_at(self, position)
        if weight is None:
            return denoise
        if self.phase(position) == STILL:
            return standing_still(denoise)
        return guide(denoise, Term(weight, unlabelled=True, contrast=self.contrast))

    def contrast(self, x: Tensor, level: Level, plain: Prediction, other: Prediction) -> Prediction:
        """What v_c - s v_u is of x0 and of eps."""
        dims = tuple(range(1, x.ndim))
        push, v_u = plain.eps - plain.x0, other.eps - other.x0
        if self.scale == "optimised":
            square = v_u.square().sum(dims, keepdim=True)
            push = push - (push * v_u).sum(dims, keepdim=True) / square.where(square > 0, 1) * v_u
        else:
            push = push - v_u
        total = level.alpha + level.sigma
        return Prediction(-broadcast(level.sigma / total, x) * push, broadcast(level.alpha / total, x) * push)


def standing_still(denoise: Denoiser) -> Denoiser:
    """`denoise` with the answer for which v is 0."""

    def answer(x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None) -> Prediction:
        denoise(x, level, told=told, cond=cond)
        return solve(x, torch.zeros_like(x), level, FlowVelocity())

    return rewrap(denoise, answer)
