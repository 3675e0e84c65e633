"""Adaptive projected guidance (Sadat et al. 2025, "Eliminating oversaturation and artifacts of high guidance scales in
diffusion models", arXiv 2410.02416), without its momentum.

On the predicted image, with c and u what the model says with the label and without, and image by image:

    d = (c - u) min(1, r/|c - u|)                    rescaling
    e = d - (1 - eta) (<d, c>/<c, c>) c              the part of d along c, times eta
    x0 = c + weight e

eps follows from the state equation. With eta 1 and no r it is cfg. The paper's reverse momentum puts d_i + beta d_(i-1)
for d in step i. It is left out: a guidance is here a function of the state and its level, which together with the
network makes a flow, and this is what fits, certificates, `why` and walks that begin in the middle of a grid rely on;
with momentum it would depend on the steps before, and on how many there were.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import Denoiser, Prediction
from snrkit.sampling.corrections.guidance import LabelGuidance, Term, guide, weight_at
from snrkit.sampling.step import Position, Range


class AdaptiveProjectedGuidance(LabelGuidance):
    """Guide by label, mostly across the predicted image and by no more than `radius`; eta 1 without radius is cfg."""

    kind: Literal["apg"] = "apg"
    eta: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="share that is kept of the part of c - u along the predicted image c; 1 keeps all of it, as cfg "
        "does",
    )
    radius: float | None = Field(
        default=None,
        gt=0,
        description="largest Euclidean norm of c - u over all numbers of a predicted image (the paper's r); default: "
        "no limit",
    )
    tunable: ClassVar[dict[str, Range]] = {
        **LabelGuidance.tunable,
        "eta": Range(1.0, 0.0, 1.0, coarse=0.1, fine=0.02),
    }

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The guided denoiser; it needs a condition with labels."""
        weight = weight_at(self, position)
        return denoise if weight is None else guide(denoise, Term(weight, unlabelled=True, contrast=self.contrast))

    def contrast(self, x: Tensor, level: Level, plain: Prediction, other: Prediction) -> Prediction:
        """e, and the eps that keeps the state."""
        dims = tuple(range(1, x.ndim))
        c, d = plain.x0, plain.x0 - other.x0
        if self.radius is not None:
            d = d * (self.radius / d.square().sum(dims, keepdim=True).sqrt()).clamp(max=1)
        square = c.square().sum(dims, keepdim=True)
        along = (d * c).sum(dims, keepdim=True) / square.where(square > 0, 1) * c  # none along an image of zeros
        push = d - (1 - self.eta) * along
        return Prediction(push, -broadcast(level.alpha / level.sigma, x) * push)
