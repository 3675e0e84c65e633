"""The kernel distance of two sets of features (KID, Binkowski et al. 2018, eq. 4), in float64 on the features' device.

    k(x, y) = (<x, y> / dim + 1)^3
    mean over subsets of  mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),

which has no bias. The subsets are those that torch-fidelity draws, so that its figures are met to rounding; products in
place of powers make it several times faster at small dimensions.

With h(x) = E[k(x, x')] - E[k(x, y)] over the two distributions, and g(y) likewise, the estimate over all n images and m
of the reference has the variance 4 Var[h]/n + 4 Var[g]/m to first order (Serfling 1980, section 5.5.1). Both are
estimated with means over images in place of expectations. Where the distributions are equal h is 0 and the estimate of
Var[h] holds the noise of those means, which is twice the variance of second order: intervals are somewhat too wide
there, by the square root of 2 at most. To it comes the variance that the choice of subsets adds to their mean.
"""

import math

import numpy as np
import torch
from torch import Tensor

from snrkit.metrics.estimate import Error, Estimate
from snrkit.metrics.extrapolation import shuffled

SEED = 2020  # of the subsets, torch-fidelity's default
ROWS = 1000  # images of each side over which h and g are taken


def kernel_estimate(features: Tensor, reference: Tensor, subsets: int, size: int) -> Estimate:
    """As kernel_distance, with its standard error."""
    found = subset_distances(features, reference, subsets, size)
    error = kernel_error(features, reference)
    chosen = float(found.var()) / len(found) if len(found) > 1 else 0.0
    return Estimate(float(found.mean()), Error(math.hypot(error.own, chosen**0.5), error.common))


def kernel_distance(features: Tensor, reference: Tensor, subsets: int, size: int) -> float:
    """KID of features (n, dim) and (m, dim) over `subsets` subsets of `size` images of each, at most n and m."""
    return float(subset_distances(features, reference, subsets, size).mean())


def subset_distances(features: Tensor, reference: Tensor, subsets: int, size: int) -> Tensor:
    """(subsets,) those whose mean is the kernel distance."""
    drawn = np.random.RandomState(SEED)
    found = []
    for _ in range(subsets):
        ours, theirs = (
            each[torch.from_numpy(drawn.choice(len(each), size, replace=False)).to(each.device)].double()
            for each in (features, reference)
        )
        found.append((_within(ours) + _within(theirs)) / (size * (size - 1)) - 2 * _sum(ours, theirs) / size**2)
    return torch.stack(found)


def kernel_error(features: Tensor, reference: Tensor) -> Error:
    """The standard errors of the kernel distance of all features (n, dim) and (m, dim)."""
    x, y = features.double(), reference.double()
    own, common = _deviation(x, y), _deviation(y, x)
    return Error(2 * own / len(x) ** 0.5, 2 * common / len(y) ** 0.5)


def _deviation(x: Tensor, y: Tensor) -> float:
    """The standard deviation over x of mean_{x' != x} k(x, x') - mean_y k(x, y)."""
    rows = shuffled(x)[:ROWS]
    own = (rows.square().sum(1) / x.shape[1] + 1).pow(3)
    found: Tensor = (_kernel(rows, x).sum(1) - own) / (len(x) - 1) - _kernel(rows, y).mean(1)
    return float(found.std())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) the values of k."""
    base = _base(x, y)
    return base.square() * base


def _base(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) what k is the cube of."""
    return torch.addmm(torch.ones((), dtype=x.dtype, device=x.device), x, y.T, alpha=1 / x.shape[1])


def _within(x: Tensor) -> Tensor:
    """The sum of k over all pairs of different x (n, dim)."""
    own: Tensor = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
    return _sum(x, x) - own


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """The sum of k over all pairs."""
    base = _base(x, y).flatten()
    return base.square() @ base
