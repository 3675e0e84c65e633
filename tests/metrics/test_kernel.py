"""The kernel distance is torch-fidelity's to rounding, and what its definition says."""

import itertools

import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from snrkit.metrics.kernel import kernel_distance


@pytest.mark.parametrize(("n", "m", "dim", "subsets", "size"), [
    (60, 60, 4, 1, 60), (80, 50, 16, 7, 40), (200, 300, 64, 20, 100), (30, 30, 300, 3, 2),
])  # fmt: skip
def test_it_is_torch_fidelitys(n, m, dim, subsets, size):
    """On the subsets that it draws."""
    features, reference = torch.randn(n, dim) * 1.2 + 0.3, torch.randn(m, dim)
    theirs = kid_features_to_metric(
        features.double(), reference.double(), kid_subsets=subsets, kid_subset_size=size, verbose=False
    )["kernel_inception_distance_mean"]
    assert kernel_distance(features, reference, subsets, size) == pytest.approx(theirs, rel=1e-10, abs=1e-13)


def test_it_is_its_definition():
    """Pair by pair, in plain numbers."""
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def k(a, b):
        return (float((a * b).sum()) / 3 + 1) ** 3

    within = [sum(k(z[i], z[j]) for i, j in itertools.permutations(range(5), 2)) / 20 for z in (x, y)]
    across = sum(k(a, b) for a in x for b in y) / 25
    assert kernel_distance(x, y, 1, 5) == pytest.approx(sum(within) - 2 * across, rel=1e-12)


def test_a_set_against_itself_is_below_zero_by_its_diagonal():
    """The estimate has no bias, so equal sets do not give 0: the diagonal is missing from two of three sums."""
    x = torch.randn(40, 8, dtype=torch.float64)
    diagonal = ((x.square().sum(1) / 8 + 1) ** 3).mean()
    every = ((x @ x.T / 8 + 1) ** 3).mean()
    assert kernel_distance(x, x, 1, 40) == pytest.approx(float(2 * (every - diagonal) / 39), rel=1e-9)
