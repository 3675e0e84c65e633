"""The kernel distance is torch-fidelity's to rounding, and what its definition says."""

import itertools

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from snrkit.metrics.kernel import kernel_distance, kernel_error, kernel_estimate


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


DIM = 8


def normal(count, shift, scale, seed):
    """(count, DIM) float32 of N(shift, scale^2)."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(shift + scale * rng.standard_normal((count, DIM))).float()


def moments(shift, scale):
    """Of N(shift, scale^2) in DIM dimensions: E[x], E[x x] and E[x x x]."""
    mean, within = np.full(DIM, shift), scale**2 * np.eye(DIM)
    mixed = [np.einsum(how, mean, within) for how in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk")]
    return mean, np.outer(mean, mean) + within, np.einsum("i,j,k->ijk", mean, mean, mean) + sum(mixed)


def truth(shift, scale):
    """MMD^2 of N(shift, scale^2) and N(0, 1): k is 1 + 3 <x, y>/d + 3 <x, y>^2/d^2 + <x, y>^3/d^3."""
    gaps = [np.square(a - b).sum() for a, b in zip(moments(shift, scale), moments(0.0, 1.0), strict=True)]
    return 3 * gaps[0] / DIM + 3 * gaps[1] / DIM**2 + gaps[2] / DIM**3


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.1, 1.0), (0.4, 1.2)])
@pytest.mark.parametrize(("n", "m", "subsets", "size"), [(200, 200, 1, 200), (150, 600, 30, 100)])
def test_the_interval_covers_the_distance_of_the_distributions(shift, scale, n, m, subsets, size):
    """No bias over 300 pairs of sets; the 95 % interval holds the truth in 92 % or more, and is not too wide for it."""
    found = [
        kernel_estimate(normal(n, shift, scale, 2 * seed), normal(m, 0.0, 1.0, 2 * seed + 1), subsets, size)
        for seed in range(300)
    ]
    values = np.array([each.value for each in found])
    errors = np.array([each.error.whole for each in found])
    wanted = truth(shift, scale)
    assert abs(values.mean() - wanted) < 4 * values.std() / 300**0.5
    assert np.mean(np.abs(values - wanted) < 1.96 * errors) >= 0.92
    assert 0.85 * values.std() < np.sqrt(np.mean(errors**2)) < 1.6 * values.std()


def test_what_the_reference_adds_is_common():
    """Over many sets against one reference only the own error varies; over references of one set, the other."""
    x, y = normal(300, 0.4, 1.2, 0), normal(300, 0.0, 1.0, 1)
    error = kernel_estimate(x, y, 1, 300).error
    of_sets = np.std([kernel_distance(normal(300, 0.4, 1.2, seed), y, 1, 300) for seed in range(2, 202)])
    of_references = np.std([kernel_distance(x, normal(300, 0.0, 1.0, seed), 1, 300) for seed in range(202, 402)])
    assert error.own == pytest.approx(of_sets, rel=0.25)
    assert error.common == pytest.approx(of_references, rel=0.25)


def test_the_error_is_that_of_its_definition():
    """Row by row, in plain numbers; of the rows that are taken where there are more."""
    x, y = (torch.randn(count, 3, dtype=torch.float64) for count in (6, 9))

    def k(a, b):
        return (float((a * b).sum()) / 3 + 1) ** 3

    def rows(of, other):
        return [
            np.mean([k(a, b) for j, b in enumerate(of) if j != i]) - np.mean([k(a, b) for b in other])
            for i, a in enumerate(of)
        ]

    error = kernel_error(x, y)
    assert error.own == pytest.approx(2 * np.std(rows(x, y), ddof=1) / 6**0.5)
    assert error.common == pytest.approx(2 * np.std(rows(y, x), ddof=1) / 9**0.5)
