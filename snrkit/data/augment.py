"""EDM's non-leaking augmentation (Karras et al. 2020; 2022, appendix F.2): geometric, told to the network.

Each of six transforms is applied with probability p, its parameters are given to the network, and sampling asks for the
parameters of "no transform", all zero. The nine parameters: x-flip, y-flip, log2 of the scale, rotation (cos - 1, sin),
anisotropy times the axis (cos, sin), translation (x, y).
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from snrkit.value import Value

DRAWS = 14  # uniforms that `augment` takes per image


class EdmAugment(Value):
    """EDM's pipe. Strengths are those of its CIFAR-10 configuration."""

    kind: Literal["edm"] = "edm"
    probability: float = Field(0.12, ge=0, le=1)
    scale_std: float = Field(0.2, ge=0)
    rotate_max: float = Field(1.0, ge=0, le=1, description="of a half turn")
    anisotropy_std: float = Field(0.2, ge=0)
    translate_std: float = Field(0.125, ge=0, description="of the image's size")

    def apply(self, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """(transformed images (B, C, H, W), parameters (B, 9)) from uniforms u (B, 14) in (0, 1)."""
        on = u[:, :6] < self.probability
        normal = torch.special.ndtri(u[:, 6:].clamp(1e-6, 1 - 1e-6))
        x_flip = (on[:, 0] & (u[:, 6] < 0.5)).to(x0.dtype)
        y_flip = (on[:, 1] & (u[:, 7] < 0.5)).to(x0.dtype)
        scale = torch.where(on[:, 2], normal[:, 2] * self.scale_std, 0.0)
        angle = torch.where(on[:, 3], (2 * u[:, 9] - 1) * math.pi * self.rotate_max, 0.0)
        stretch = torch.where(on[:, 4], normal[:, 4] * self.anisotropy_std, 0.0)
        axis = (2 * u[:, 11] - 1) * math.pi
        shift = torch.where(on[:, 5:6], normal[:, 6:8] * self.translate_std, 0.0)
        matrix = _mirror(x_flip, y_flip) @ _scale(scale) @ _rotate(angle)
        matrix = matrix @ _rotate(axis) @ _stretch(stretch) @ _rotate(-axis)
        theta = torch.cat([matrix, 2 * shift[:, :, None]], dim=2).to(x0.dtype)
        turn = torch.stack([angle.cos() - 1, angle.sin()], 1)
        along = stretch[:, None] * torch.stack([axis.cos(), axis.sin()], 1)
        told = torch.cat([torch.stack([x_flip, y_flip, scale], 1), turn, along, shift], 1)
        return torch.where(on.any(1)[:, None, None, None], _warp(x0, theta), x0), told.to(x0.dtype)


def _warp(x0: Tensor, theta: Tensor) -> Tensor:
    grid = functional.affine_grid(theta, list(x0.shape), align_corners=False)
    return functional.grid_sample(x0, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _diagonal(a: Tensor, b: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([a, b], 1).double())


def _mirror(x_flip: Tensor, y_flip: Tensor) -> Tensor:
    return _diagonal(1 - 2 * x_flip, 1 - 2 * y_flip)


def _scale(log2: Tensor) -> Tensor:
    return _diagonal(torch.exp2(-log2), torch.exp2(-log2))


def _stretch(log2: Tensor) -> Tensor:
    return _diagonal(torch.exp2(-log2), torch.exp2(log2))


def _rotate(angle: Tensor) -> Tensor:
    cos, sin = angle.double().cos(), angle.double().sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
