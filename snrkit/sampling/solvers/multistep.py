"""What multistep solvers share: the weights that integrate a polynomial through past predictions.

A solver integrates f over one step, with time r running from 0 at the present level to 1 at the next. Let f be the
polynomial through the present value f_0 (at r = 0) and values f_i at other nodes r_i. For a linear functional L, such
as the integral against the solver's kernel,

    L[f] = f_0 L[1] + sum_i w_i (f_i - f_0),    w_i = L[l_i],    l_i(r) = (r/r_i) prod_{j != i} (r - r_j)/(r_i - r_j),

so that only the moments L[r], L[r^2], ... enter, and equal values leave the first-order step unchanged.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from snrkit.diffusion.level import broadcast

Past = tuple[tuple[Tensor, Tensor], ...]
"""What a solver remembers: pairs of a prediction (B, *) and its coordinate, () or (B,), newest first."""

SERIES_BELOW = 0.5  # where the recursion of the moments would cancel
SERIES_TERMS = 14


def weights(nodes: Sequence[Tensor], moments: Sequence[Tensor | float]) -> list[Tensor]:
    """w_i for nodes r_i (k of them, not 0, distinct) and the moments L[r], ..., L[r^k]; shaped as the nodes."""
    found = []
    for i, node in enumerate(nodes):
        others = [r for j, r in enumerate(nodes) if j != i]
        polynomial = [torch.ones_like(node)]  # coefficients of prod (r - r_j), from r^0 on
        scale = node
        for r in others:
            shifted = [torch.zeros_like(node), *polynomial]
            polynomial = [a - r * b for a, b in zip(shifted, [*polynomial, torch.zeros_like(node)], strict=True)]
            scale = scale * (node - r)
        total = sum((c * m for c, m in zip(polynomial, moments, strict=True)), torch.zeros_like(node))
        found.append(total / scale)
    return found


def increment(
    values: Sequence[Tensor], present: Tensor, nodes: Sequence[Tensor], moments: Sequence[Tensor | float]
) -> Tensor:
    """sum_i w_i (f_i - f_0), shaped as the present value f_0 (B, *)."""
    total = torch.zeros_like(present)
    for value, weight in zip(values, weights(nodes, moments), strict=True):
        total = total + broadcast(weight, present) * (value - present)
    return total


def exponential_moments(h: Tensor, count: int) -> list[Tensor]:
    """h * integral over r in [0, 1] of exp(-h (1 - r)) r^n, n = 1..count: x0's kernel in half-logsnr steps h > 0."""
    recursive = -torch.expm1(-h)
    found = []
    for n in range(1, count + 1):
        recursive = 1 - n / h * recursive
        terms = ((-h) ** k * math.factorial(n) / math.factorial(n + k + 1) for k in range(SERIES_TERMS))
        series = h * sum(terms, torch.zeros_like(h))
        found.append(torch.where(h < SERIES_BELOW, series, recursive))
    return found


def midpoint_moment(h: Tensor) -> Tensor:
    """Half of the zeroth moment: what DPM-Solver++ 2M and UniPC take for the first at second order."""
    return -torch.expm1(-h) / 2


def remember(value: Tensor, when: Tensor, past: Past, length: int) -> Past:
    """The newest `length` pairs; what was predicted at pure noise lies infinitely far back and is left out."""
    known = () if bool(when.isinf().any()) else ((value, when),)
    return (*known, *past)[:length]
