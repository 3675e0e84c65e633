"""Images of which there is too little to score: a number that is right, or a sentence."""

import math
import warnings

import numpy as np
import pytest
import torch

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.commands.eval_fid import score_pair
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import principal

RNG = np.random.default_rng(0)
WORLD = World(0, 1, torch.device("cpu"))
SETS = {
    "one": (RNG.integers(0, 256, (1, 16, 16, 1), dtype=np.uint8), np.zeros(1, int)),
    "two": (RNG.integers(0, 256, (2, 16, 16, 1), dtype=np.uint8), np.arange(2)),
    "twins": (np.full((2, 16, 16, 1), 7, np.uint8), np.arange(2)),
    "constant": (np.full((20, 16, 16, 1), 7, np.uint8), np.arange(20) % 2),
    "one-class": (RNG.integers(0, 256, (20, 16, 16, 1), dtype=np.uint8), np.zeros(20, int)),
}
POINTS = {
    "points": (RNG.integers(0, 256, (20, 1, 1, 1), dtype=np.uint8), np.arange(20) % 2),
    "one-point": (np.full((20, 1, 1, 1), 7, np.uint8), np.arange(20) % 2),
}


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Scores of two of the sets, by other settings where given."""
    monkeypatch.setenv("SNRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("snrkit.metrics.classifier.IMAGES", 512)
    for name, (images, labels) in {**SETS, **POINTS}.items():
        np.savez(tmp_path / f"{name}.npz", images, labels)

    def score(first, second, **settings):
        pair = [str(tmp_path / f"{name}.npz") for name in (first, second)]
        return score_pair(*pair, MetricsConfig(**settings), None, WORLD).scores

    return score


@pytest.mark.parametrize("features", ["pixels", "classifier"])
@pytest.mark.parametrize("group", [SETS, POINTS])
def test_scores_are_numbers_or_sentences(scored, features, group):
    """Of every pair; without a warning of the libraries below."""
    settings = {"features": features, **({"pixel_components": 4} if features == "pixels" else {})}
    for first in group:
        for second in group:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                if "one" in (first, second):
                    with pytest.raises(SnrkitError, match=r"one\.npz holds 1 image, which is too few to score"):
                        scored(first, second, **settings)
                    continue
                found = scored(first, second, **settings)
            assert all(value is None or math.isfinite(value) for value in found.values.values())
            if first == second:
                assert abs(found.values["fd"]) < 1e-6


def test_the_distance_of_constant_images_is_that_of_their_means(scored):
    """By all pixels, and by few components of images that have none."""
    images = SETS["one-class"][0][:, :, :, 0].reshape(20, -1) / 127.5 - 1
    away = images - (7 / 127.5 - 1)
    wanted = (away.mean(0) ** 2).sum() + images.var(0, ddof=1).sum()
    whole = scored("one-class", "constant", features="pixels", pixel_components=256)
    assert whole.values["fd"] == pytest.approx(wanted, rel=1e-5)
    few = scored("one-class", "twins", features="pixels", pixel_components=4)
    assert 0 < few.values["fd"] < wanted


def test_components_of_no_variance_are_some_orthonormal_ones():
    """As of any covariance: Lanczos' method would end in an error."""
    for covariance in (torch.zeros(64, 64, dtype=torch.float64), torch.ones(64, 64, dtype=torch.float64)):
        basis = principal(covariance, 4)
        torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64))
    alternating = torch.ones(64, dtype=torch.float64)
    alternating[::2] = -1  # orthogonal to where Lanczos' method begins
    basis = principal(torch.outer(alternating, alternating), 4)
    torch.testing.assert_close(basis[:, 0].abs() * 8, torch.ones(64, dtype=torch.float64))
