"""The sliced distance is exact in one dimension, and what theory says of Gaussians in more."""

import math

import numpy as np
import pytest
import torch

from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.features import FeatureSet
from snrkit.metrics.scores import Pair, by_key
from snrkit.metrics.sliced import directions, sliced_distance, wasserstein
from snrkit.metrics.statistics import gaussian_of


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (6, 4), (5, 13), (40, 100)])
def test_one_dimension_is_exact(n, m):
    """Equal to the mean square between sorted values, each repeated until both sides are as many."""
    x, y = torch.randn(n, 1, dtype=torch.float64), torch.randn(m, 1, dtype=torch.float64)
    both = math.lcm(n, m)
    repeated = [z.sort(0).values.repeat_interleave(both // len(z), 0) for z in (x, y)]
    wanted = float((repeated[0] - repeated[1]).square().mean())
    assert sliced_distance(x, y) == pytest.approx(wanted, rel=1e-12)
    assert sliced_distance(y, x) == pytest.approx(wanted, rel=1e-12)


def test_it_is_the_least_cost_of_a_matching():
    """By brute force over all assignments, scipy's."""
    from scipy.optimize import linear_sum_assignment

    x, y = torch.randn(12, 1, dtype=torch.float64), 2 * torch.randn(12, 1, dtype=torch.float64)
    cost = (x - y.T).square().numpy()
    rows, places = linear_sum_assignment(cost)
    assert sliced_distance(x, y) == pytest.approx(cost[rows, places].mean(), rel=1e-12)


def test_directions_are_unit_vectors_that_stay():
    """Of every dimension, the same each time; the mean of their squares is that of the sphere."""
    axes = directions(16)
    torch.testing.assert_close(axes.norm(dim=0), torch.ones(128, dtype=torch.float64))
    directions.cache_clear()
    assert torch.equal(axes, directions(16))
    torch.testing.assert_close(axes.square().mean(1), torch.full((16,), 1 / 16, dtype=torch.float64), rtol=0, atol=0.03)


def test_a_shift_moves_every_direction_by_its_own_part():
    """Of x and x + shift: the mean of <theta, shift>^2, whatever x is."""
    x, shift = torch.randn(50, 6, dtype=torch.float64), torch.arange(6, dtype=torch.float64)
    wanted = float((shift @ directions(6)).square().mean())
    assert sliced_distance(x, x + shift) == pytest.approx(wanted)
    assert sliced_distance(x, x) == 0


def test_the_columns_do_not_mix():
    """Every column is a distance of its own."""
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    single = torch.cat([wasserstein(x[:, [k]], y[:, [k]]) for k in range(3)])
    torch.testing.assert_close(wasserstein(x, y), single)


@pytest.mark.parametrize(
    ("n", "m", "dim", "pairs", "left"), [(400, 400, 8, 100, 0.08), (200, 600, 8, 100, 0.10), (1000, 1000, 64, 30, 0.05)]
)
def test_a_tenth_of_the_excess_is_left(n, m, dim, pairs, left):
    """Of two sets of one law the share of the plain distance that the page has, to three standard errors.

    These are at most 9 % of the plain distance, so that a quarter, which ten parts would leave, is told apart.
    """

    def drawn(count, rng):
        features = torch.from_numpy(rng.standard_normal((count, dim)))
        return FeatureSet(gaussian_of(features, (dim,)), features)

    plain, values = [], []
    for seed in range(pairs):
        rng = np.random.default_rng(seed)
        a, b = drawn(n, rng), drawn(m, rng)
        plain.append(sliced_distance(a.features, b.features))
        values.append(by_key("sliced").compute(Pair(a, b, MetricsConfig(more=("sliced",)), [])))
    width = 3 * np.std(values) / pairs**0.5
    assert width < 0.09 * np.mean(plain)
    assert abs(np.mean(values) - left * np.mean(plain)) < width
    assert np.std(values) < np.mean(plain)
