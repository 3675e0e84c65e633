"""What a noise level is.

A level is the triple (logsnr, alpha, sigma) of the state equation x = alpha*x0 + sigma*eps, with
logsnr = ln(alpha^2/sigma^2) in nats. The families of the field differ in how alpha and sigma follow from logsnr, their
*scaling*:

    vp     alpha^2 = sigmoid(logsnr)        sigma^2 = sigmoid(-logsnr)       (DDPM; Ho et al. 2020)
    ve     alpha   = 1                      sigma   = exp(-logsnr/2)         (EDM; Karras et al. 2022)
    flow   alpha   = sigmoid(logsnr/2)      sigma   = sigmoid(-logsnr/2)     (flow matching; Lipman et al. 2023)

Levels are float64, with shape () for a whole batch or (B,), one per image. Both ends are allowed: logsnr = +inf is a
clean image; logsnr = -inf is pure noise in vp and flow.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from snrkit.base.transfer import send

Scaling = Literal["vp", "ve", "flow"]
ROUNDING_VARIANCE = (2 / 255) ** 2 / 12  # of rounding to 8 bits in [-1, 1]: noise of logsnr 12.18 and ratio 0.0023


@dataclass(frozen=True, slots=True)
class Level:
    """A noise level, or one for each image of a batch: float64 tensors of shape () or (B,)."""

    logsnr: Tensor
    alpha: Tensor
    sigma: Tensor

    def scales(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) in the dtype and on the device of `x` (B, *), broadcast against it."""
        return broadcast(self.alpha, x), broadcast(self.sigma, x)

    def ratio(self, x: Tensor) -> Tensor:
        """sigma/alpha, the noise level of EDM, broadcast against `x`; inf at alpha = 0."""
        return broadcast(self.sigma / self.alpha, x)

    def at(self, rows: int | slice | Tensor) -> "Level":
        """The same of some images."""
        if self.logsnr.ndim == 0:
            return self
        return Level(self.logsnr[rows], self.alpha[rows], self.sigma[rows])

    def is_clean(self) -> bool:
        """Whether every image of this level is free of noise."""
        return bool((self.sigma == 0).all())


def broadcast(scale: Tensor, x: Tensor) -> Tensor:
    """`scale` of shape () or (B,) in the dtype of `x` (B, *), shaped so that it multiplies each image.

    A scale of shape () stays on the CPU, where torch treats it as a number and needs no copy to the device.
    """
    if scale.ndim == 0:
        return scale.to(x.dtype)
    return send(scale.to(x.dtype), x.device).reshape(-1, *(1,) * (x.ndim - 1))


def level_of(logsnr: Tensor, scaling: Scaling) -> Level:
    """The level at `logsnr` (shape () or (B,), any dtype) in the given scaling."""
    logsnr = logsnr.to(torch.float64)
    if scaling == "vp":
        return Level(logsnr, torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt())
    if scaling == "ve":
        return Level(logsnr, torch.ones_like(logsnr), torch.exp(-logsnr / 2))
    return Level(logsnr, torch.sigmoid(logsnr / 2), torch.sigmoid(-logsnr / 2))
