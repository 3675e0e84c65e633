"""Non-leaking augmentation after EDM (Karras et al. 2020; 2022, appendix F.2): geometric, and told to the network.

Mirroring in x is always on the table, each of five other transforms with probability p; the parameters drawn are given
to the network, and sampling asks for the parameters of "no transform", all zero. The nine: x-flip, y-flip, the normal
behind the scale, rotation (cos - 1, sin), the normal behind the anisotropy times its axis (cos, sin), and the two
normals behind the translation. Resampling is bilinear with reflection, where EDM filters with sym6.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from snrkit.base.transfer import send
from snrkit.base.value import Value

DRAWS = 14  # uniforms that `augment` takes per image


class EdmAugment(Value):
    """The pipe of transforms; the strengths are EDM's defaults, the probability that of its CIFAR-10 runs."""

    kind: Literal["edm"] = "edm"
    probability: float = Field(default=0.12, ge=0, le=1, description="probability of each transform but x-flip")
    flip_probability: float = Field(
        default=1.0, ge=0, le=1, description="probability that x-flip is drawn at all; it then flips half"
    )
    scale_std: float = Field(default=0.2, ge=0, description="standard deviation of the base-2 logarithm of the scale")
    rotate_max: float = Field(
        default=1.0, ge=0, le=1, description="largest angle of the rotation, as a share of a half turn"
    )
    anisotropy_std: float = Field(
        default=0.2, ge=0, description="standard deviation of the base-2 logarithm of the stretch along a random axis"
    )
    translate_std: float = Field(
        default=0.125, ge=0, description="standard deviation of the translation, as a share of the image's side"
    )

    def apply(self, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """(transformed images (B, C, H, W), parameters (B, 9)) from uniforms u (B, 14) in (0, 1).

        u lies on the host, where all is computed but the images, which are transformed where they lie; so are both
        results there.
        """
        limits = u.new_tensor([self.flip_probability, *[self.probability] * 5])
        on = u[:, :6] < limits
        normal = torch.special.ndtri(u[:, 6:].clamp(1e-6, 1 - 1e-6))
        x_flip = (on[:, 0] & (u[:, 6] < 0.5)).to(u.dtype)
        y_flip = (on[:, 1] & (u[:, 7] < 0.5)).to(u.dtype)
        scale, stretch = (torch.where(on[:, k], normal[:, k], 0.0) for k in (2, 4))
        angle = torch.where(on[:, 3], (2 * u[:, 9] - 1) * math.pi * self.rotate_max, 0.0)
        axis = (2 * u[:, 11] - 1) * math.pi
        shift = torch.where(on[:, 5:6], normal[:, 6:8], 0.0)
        matrix = _mirror(x_flip, y_flip) @ _scale(scale * self.scale_std) @ _rotate(angle)
        matrix = matrix @ _rotate(axis) @ _stretch(stretch * self.anisotropy_std) @ _rotate(-axis)
        theta = _sampling_matrix(matrix, shift * self.translate_std, x0)
        turn = torch.stack([angle.cos() - 1, angle.sin()], 1)
        along = stretch[:, None] * torch.stack([axis.cos(), axis.sin()], 1)
        told = torch.cat([torch.stack([x_flip, y_flip, scale], 1), turn, along, shift], 1)
        changed = send((told != 0).any(1), x0.device)[:, None, None, None]
        warped = _warp(x0, send(theta, x0.device))
        return torch.where(changed, warped, x0), send(told.to(x0.dtype), x0.device)


def _sampling_matrix(matrix: Tensor, shift: Tensor, x0: Tensor) -> Tensor:
    """(B, 2, 3) from pixel geometry: grids run from -1 to 1 along both sides, so a rotation must know their lengths."""
    size = torch.tensor([x0.shape[3], x0.shape[2]], dtype=torch.float64)
    square = matrix.double() * size[None, None, :] / size[None, :, None]
    return torch.cat([square, (square @ (-2 * shift.double())[:, :, None])], dim=2).to(x0.dtype)


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
