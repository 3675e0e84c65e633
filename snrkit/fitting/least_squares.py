"""Least squares over first states, with a ridge whose strength is chosen by leaving one of them out.

Terms f_i and what they are to make, y, are images. With G_j and b_j the sums over the numbers of image j of f f' and
f y, G = sum G_j and b = sum b_j, the plain solution is c = G^-1 b, and the ridge in the metric of G,

    min_c |y - sum_i c_i f_i|^2 + mu c' G c,    is    s c,  s = 1/(1 + mu):

a share of the plain solution, 0 at infinite mu. With c_(-j) = (G - G_j)^-1 (b - b_j), fitted without image j, the error
on what was left out is a parabola in s; s is its least in [0, 1]. At a share of 0 coefficients are exact zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.sampling.flow import in_rows

HELD_AT_ONCE = 2**28  # bytes of the images whose products are taken together
SMALLEST = 1e-10  # of the eigenvalues of G with a unit diagonal, below which terms are taken to be the same


@dataclass(frozen=True, slots=True)
class Solved:
    """The coefficients of terms."""

    coefficients: tuple[float, ...]  # shrunk
    share: float  # of the plain solution


def fit_terms(terms: Sequence[Tensor], wanted: Tensor) -> Solved:
    """The coefficients with which terms (M, *) make `wanted` (M, *). SnrkitError where sums are not finite."""
    products, with_wanted = sums(terms, wanted)
    whole, of_wanted = products.sum(0), with_wanted.sum(0)
    if not bool(whole.isfinite().all() and of_wanted.isfinite().all()):
        raise SnrkitError("a step has states or predictions that are not finite or too large, and nothing fits them.")
    plain = solutions(whole, of_wanted)
    left_out = solutions(whole - products, of_wanted - with_wanted)
    gained = float((left_out * with_wanted).sum())
    curvature = float((left_out[:, None] @ products @ left_out[:, :, None]).sum())
    share = min(max(gained / curvature, 0.0), 1.0) if curvature > 0 else 0.0
    return Solved(tuple((share * plain).tolist()) if share else (0.0,) * len(terms), share)


def sums(terms: Sequence[Tensor], wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(Products of terms (M, n, n), of terms with `wanted` (M, n)), summed over each image's numbers; float64."""
    found = []
    for rows in in_rows(len(wanted), at_once((len(terms) + 1) * wanted[0].numel())):
        flat = torch.stack([term[rows].double().flatten(1) for term in terms], 1)
        along = flat @ wanted[rows].double().flatten(1)[:, :, None]
        found.append(((flat @ flat.mT).cpu(), along[..., 0].cpu()))
    products, with_wanted = (torch.cat(part) for part in zip(*found, strict=True))
    return products, with_wanted


def at_once(numbers: int) -> int:
    """Of how many images products are taken at once, with so many float64 numbers held for each."""
    return max(1, HELD_AT_ONCE // (8 * numbers))


def solutions(products: Tensor, with_wanted: Tensor) -> Tensor:
    """G^-1 b (..., n) for G (..., n, n) and b (..., n); terms that are combinations of others are left out."""
    scale = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    unit = torch.where(scale > 0, 1 / scale, 0.0)
    alike = products * unit[..., :, None] * unit[..., None, :]
    values, vectors = torch.linalg.eigh(alike)
    inverse = torch.where(values > SMALLEST, 1 / values, 0.0)
    along = vectors.mT @ (unit * with_wanted)[..., None]
    found: Tensor = unit * (vectors @ (inverse[..., None] * along))[..., 0]
    return found
