"""The kernel distance of two sets of features (KID, Binkowski et al. 2018, eq. 4), in float64 on the features' device.

    k(x, y) = (<x, y> / dim + 1)^3
    mean over subsets of  mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),

which has no bias. The subsets are those that torch-fidelity draws, so that its figures are met to rounding; products in
place of powers make it several times faster at small dimensions.
"""

import numpy as np
import torch
from torch import Tensor

SEED = 2020  # of the subsets, torch-fidelity's default


def kernel_distance(features: Tensor, reference: Tensor, subsets: int, size: int) -> float:
    """KID of features (n, dim) and (m, dim) over `subsets` subsets of `size` images of each, at most n and m."""
    drawn = np.random.RandomState(SEED)
    found = []
    for _ in range(subsets):
        ours, theirs = (
            each[torch.from_numpy(drawn.choice(len(each), size, replace=False)).to(each.device)].double()
            for each in (features, reference)
        )
        found.append((_within(ours) + _within(theirs)) / (size * (size - 1)) - 2 * _sum(ours, theirs) / size**2)
    return float(torch.stack(found).mean())


def _within(x: Tensor) -> Tensor:
    """The sum of k over all pairs of different x (n, dim)."""
    own: Tensor = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
    return _sum(x, x) - own


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """The sum of k over all pairs."""
    base = torch.addmm(torch.ones((), dtype=x.dtype, device=x.device), x, y.T, alpha=1 / x.shape[1]).flatten()
    return base.square() @ base
