"""FD-infinity, its interval and the floor, on Gaussian features whose distance is known."""

import math

import numpy as np
import pytest
import torch

from snrkit.base.errors import SnrkitError
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extrapolation import (
    MOST_PARTS,
    count_parts,
    extrapolated,
    first_order_error,
    frechet_infinity,
    intercept_weights,
    parts_of,
    shuffled,
    transport_map,
)
from snrkit.metrics.features import FeatureSet
from snrkit.metrics.floor import frechet_floor
from snrkit.metrics.scores import score
from snrkit.metrics.statistics import FeatureGaussian, frechet, gaussian_of

DIM = 8
FALLING = 0.8 ** torch.arange(DIM, dtype=torch.float64)  # standard deviations, as those of features fall


def draws(count, shift, scale, seed, shape=(DIM,)):
    """Gaussian features: N(shift, (scale FALLING)^2), float32 as extractors give them."""
    rng = np.random.default_rng(seed)
    normal = torch.from_numpy(rng.standard_normal((count, math.prod(shape))))
    return (shift + scale * FALLING.repeat(math.prod(shape) // DIM) * normal).float()


def truth(shift, scale):
    """The distance of N(shift, (scale FALLING)^2) from N(0, FALLING^2)."""
    return DIM * shift**2 + float(((scale - 1) ** 2 * FALLING**2).sum())


def test_the_weights_give_the_intercept_of_a_line():
    """They sum to 1 and take any multiple of k out."""
    for count in range(2, 11):
        weights = intercept_weights(count)
        k = torch.arange(1, count + 1, dtype=torch.float64)
        assert float(weights.sum()) == pytest.approx(1)
        assert float(weights @ k) == pytest.approx(0, abs=1e-12)
        assert float(weights @ (3 - 2 * k)) == pytest.approx(3)


def test_parts_are_disjoint_and_whole():
    """Every row is in one part of each number of parts, whatever order they are put in."""
    rows = shuffled(torch.arange(103)[:, None])
    for count in range(1, 11):
        parts = parts_of(rows, count)
        assert sorted(torch.cat(parts).flatten().tolist()) == list(range(103))
        assert {len(part) for part in parts} <= {103 // count, 103 // count + 1}
    assert count_parts(10_000, 2_000, 100) == MOST_PARTS
    assert count_parts(10_000, 2_000, 1_500) == 1


def test_a_distance_that_is_a_line_is_extrapolated_exactly():
    """Of d + a/n + b/m, for any two counts that k divides."""
    x, y = torch.zeros(2520, 1), torch.zeros(5040, 1)
    found = extrapolated(lambda a, b: 0.7 + 30 / len(a) + 50 / len(b), x, y, 10)
    assert found == pytest.approx(0.7, rel=1e-12)


@pytest.fixture(scope="module", params=[(0.0, 1.0), (0.05, 1.1), (0.3, 0.8)], ids=["equal", "near", "far"])
def repeated(request):
    """(truth, estimates, plain distances) of 200 sets of 400 images against 1,000, each pair drawn anew."""
    shift, scale = request.param
    found, plain = [], []
    for seed in range(200):
        x, y = draws(400, shift, scale, 2 * seed), draws(1000, 0.0, 1.0, 2 * seed + 1)
        found.append(frechet_infinity(x, y, (DIM,)))
        plain.append(frechet(gaussian_of(x, (DIM,)), gaussian_of(y, (DIM,))))
    return truth(shift, scale), found, plain


def test_the_excess_is_gone(repeated):
    """The mean over 200 sets is the truth to within its noise and 5 % of what the plain distance is too large by."""
    wanted, found, plain = repeated
    values = np.array([each.value for each in found])
    noise, excess = values.std() / 200**0.5, np.mean(plain) - wanted
    assert excess > 4 * np.std(plain) / 200**0.5
    assert abs(values.mean() - wanted) < 3 * noise + 0.05 * excess


def test_the_interval_covers(repeated):
    """The 95 % interval holds the truth in 92 % of 200 sets or more, and is not wider than twice what it should be."""
    wanted, found, _ = repeated
    values, errors = (np.array(each) for each in zip(*((f.value, f.error.whole) for f in found), strict=True))
    assert np.mean(np.abs(values - wanted) < 1.96 * errors) >= 0.92
    assert errors.mean() < 2 * values.std()


def test_the_standard_error_in_one_dimension_is_the_textbooks():
    """The distance is (mu - nu)^2 + (s - r)^2, so 4 (mu - nu)^2 s^2/n + 4 (s - r)^2 s^2/(2n) is its variance."""
    mean, deviation, count = 0.7, 1.6, 200_000
    x = mean + deviation * torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = FeatureGaussian(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64), 0)
    wanted = 4 * (mean * deviation) ** 2 / count + 2 * ((deviation - 1) * deviation) ** 2 / count
    found = first_order_error(x, gaussian_of(x, (1,)), other, (1,))
    assert found == pytest.approx(wanted**0.5, rel=0.02)


def test_the_map_transports():
    """A S A is R, A is symmetric, and the map back is its inverse."""
    source, target = (gaussian_of(torch.randn(50, 6, dtype=torch.float64) * (1 + torch.arange(6)), (6,)) for _ in "ab")
    there, back = transport_map(source, target), transport_map(target, source)
    torch.testing.assert_close(there @ source.covariance @ there, target.covariance)
    torch.testing.assert_close(there, there.mT)
    torch.testing.assert_close(there @ back, torch.eye(6, dtype=torch.float64))


def test_a_set_is_at_no_distance_from_itself():
    """Of the same images in the same order nothing is left, at any number of parts."""
    x = draws(300, 0.0, 1.0, 0)
    found = frechet_infinity(x, x, (DIM,))
    assert found.value == pytest.approx(0, abs=1e-9)


def test_a_reference_of_moments_stays_as_it_is():
    """Only the excess of the images goes: against exact moments the mean is the truth; no error is the reference's."""
    exact = FeatureGaussian(torch.zeros(DIM, dtype=torch.float64), torch.diag(FALLING**2), 0)
    found = [frechet_infinity(draws(400, 0.1, 1.1, seed), exact, (DIM,)) for seed in range(100)]
    values = np.array([each.value for each in found])
    assert abs(values.mean() - truth(0.1, 1.1)) < 3 * values.std() / 10
    assert {each.error.common for each in found} == {0.0}
    assert np.mean([abs(f.value - truth(0.1, 1.1)) < 1.96 * f.error.own for f in found]) >= 0.9


def test_packets_are_averaged():
    """Of two packets of one law each the truth is the same, and the interval holds it."""
    shape = (2, DIM)
    x, y = draws(600, 0.2, 1.1, 0, shape), draws(600, 0.0, 1.0, 1, shape)
    found = frechet_infinity(x, y, shape)
    assert abs(found.value - truth(0.2, 1.1)) < 3 * found.error.whole
    halves = [frechet_infinity(x[:, part], y[:, part], (DIM,)) for part in (slice(0, DIM), slice(DIM, None))]
    assert found.value == pytest.approx(sum(half.value for half in halves) / 2)


@pytest.mark.parametrize(("images", "known"), [(400, 1000), (400, 600), (900, 1000)])
def test_the_floor_is_what_new_real_images_score(images, known):
    """Averaged over references: the plain distance of as many new images, of the same law, against all of it."""
    floors, fresh = [], []
    for seed in range(100):
        reference = draws(known, 0.0, 1.0, 2 * seed)
        floors.append(frechet_floor(reference, (DIM,), images, known))
        new = draws(images, 0.0, 1.0, 2 * seed + 1)
        fresh.append(frechet(gaussian_of(new, (DIM,)), gaussian_of(reference, (DIM,))))
    noise = math.hypot(np.std(floors), np.std(fresh)) / 10
    assert abs(np.mean(floors) - np.mean(fresh)) < 3 * noise + 0.03 * np.mean(fresh)


def feature_set(features):
    """As extractors give it."""
    return FeatureSet(gaussian_of(features, (features.shape[1],)), features)


def test_scores_are_computed_where_they_are_asked_for():
    """By metrics.more and by metrics.decide; with their errors, KID's too; otherwise they are None."""
    sets = feature_set(draws(200, 0.1, 1.0, 0)), feature_set(draws(300, 0.0, 1.0, 1))
    plain = score(*sets, MetricsConfig())
    assert [plain.values[key] for key in ("fd_infinity", "sliced")] == [None] * 2
    assert plain.values["fd_floor"] == frechet_floor(sets[1].features, sets[1].gaussian.mean.shape, 200, 300)
    assert set(plain.errors) == {"kid"}
    asked = score(*sets, MetricsConfig(more=("sliced",), decide="fd_infinity"))
    assert all(asked.values[key] is not None for key in ("fd_infinity", "fd_floor", "sliced"))
    assert set(asked.errors) == {"kid", "fd_infinity"}
    assert {key: asked.values[key] for key in ("fd", "kid", "recall")} == {
        key: plain.values[key] for key in ("fd", "kid", "recall")
    }
    assert asked.values["fd_infinity"] < asked.values["fd"]


def test_too_few_images_have_no_intercept():
    """None with the number that is needed, and an error where it is to decide."""
    sets = feature_set(draws(31, 0.1, 1.0, 0)), feature_set(draws(300, 0.0, 1.0, 1))
    found = score(*sets, MetricsConfig(more=("fd_infinity",)))
    assert found.values["fd_infinity"] is None
    assert "FD∞ needs 32 images on either side, for 8 features; there are 31 and 300." in found.warnings
    with pytest.raises(SnrkitError, match=r"metrics\.decide: fd_infinity cannot be had of 31 images: .*needs 32"):
        score(*sets, MetricsConfig(decide="fd_infinity"))
