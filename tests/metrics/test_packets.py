"""Wavelet packets are PyWavelets', and the distance of them is the mean of theirs."""

import numpy as np
import pytest
import pywt
import scipy.linalg
import torch

from snrkit.base.distributed import World
from snrkit.commands.eval_fid import score_pair
from snrkit.data.dataset import Split, memory_dataset
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import make_extractor
from snrkit.metrics.features import extract
from snrkit.metrics.packets import levels_of, packet_coefficients
from snrkit.metrics.scores import titles_on
from snrkit.metrics.statistics import RunningMoments, frechet, gaussian_of

WORLD = World(0, 1, torch.device("cpu"))
CONFIG = MetricsConfig(features="packets")


def pictures(count, shape, seed):
    """Random bytes with structure: noise that is smoothed along rows and lifted."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (count, *shape)).astype(float)
    return torch.from_numpy(((noise + np.roll(noise, 1, -1)) / 2 + 3 * seed).clip(0, 255).astype(np.uint8))


def by_pywt(images, level):
    """{path: coefficients (n, C h w)} of images in [0, 1], from PyWavelets' own packets."""
    unit, found = images.numpy() / 255, {}
    for picture in unit:
        trees = [pywt.WaveletPacket2D(channel, "haar", "periodization", level) for channel in picture]
        for node in trees[0].get_level(level):
            found.setdefault(node.path, []).append(np.concatenate([tree[node.path].data.ravel() for tree in trees]))
    return {path: np.array(rows) for path, rows in found.items()}


def textbook(a, b):
    """The Frechet distance by scipy's root of the product."""
    means, covariances = zip(*((z.mean(0), np.atleast_2d(np.cov(z.T))) for z in (a, b)), strict=True)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * np.trace(root).real


@pytest.mark.parametrize(("shape", "level"), [((3, 16, 16), 4), ((1, 8, 8), 3), ((2, 12, 8), 2), ((1, 5, 8), 0)])
def test_packets_are_pywavelets(shape, level):
    """Every packet of every channel, as sets, since ours stand in another order."""
    images = pictures(5, shape, 0)
    assert levels_of(shape) == level
    x0 = images.float() / 127.5 - 1
    ours = packet_coefficients(x0).view(5, 4**level, -1)
    theirs = by_pywt(images, level)
    assert len(theirs) == 4**level
    for rows in theirs.values():
        gaps = (ours - torch.from_numpy(rows)[:, None].float()).abs().amax((0, 2))
        assert float(gaps.min()) < 1e-5


def test_the_distance_is_the_mean_over_pywavelets_packets(tmp_path):
    """To 1e-6 of its value, images against images, through eval-fid, under the name FWD."""
    sets = [pictures(60, (3, 8, 8), seed) for seed in (0, 1)]
    for name, images in zip("ab", sets, strict=True):
        np.savez(tmp_path / f"{name}.npz", images.permute(0, 2, 3, 1).numpy())
    found = score_pair(str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), CONFIG, None, WORLD)
    ours, theirs = (by_pywt(images, 3) for images in sets)
    wanted = np.mean([textbook(ours[path], theirs[path]) for path in ours])
    assert found.scores.values["fd"] == pytest.approx(wanted, rel=1e-5)
    assert found.names["fd"] == titles_on("packets")["fd"] == "FWD"
    assert found.names["kid"] == "KID-packets"


def test_a_set_is_at_no_distance_from_itself():
    """In every packet, whatever the order of the images."""
    images = pictures(40, (1, 8, 8), 0)
    extractor = make_extractor(CONFIG, memory_dataset("x", images), Split((0,), ()), WORLD.device)
    assert (extractor.dim, extractor.packets, extractor.shape, extractor.classes) == (64, 64, (64, 1), 0)
    first = extract(extractor, memory_dataset("x", images), range(40), 7, WORLD)
    again = extract(extractor, memory_dataset("x", images.flip(0)), range(40), 40, WORLD)
    assert frechet(first.gaussian, again.gaussian.with_root()) == pytest.approx(0, abs=1e-9)


def test_moments_in_packets_are_those_of_each():
    """Streamed together, they are what each packet's own features give, and the distance is the mean of theirs."""
    a, b = torch.randn(300, 12, dtype=torch.float64), 1 + 2 * torch.randn(200, 12, dtype=torch.float64)
    found = RunningMoments(3, 4)
    for part in a.split(37):
        found.add(part)
    gaussian, other = found.gaussian(), gaussian_of(b, (3, 4))
    assert gaussian.dim == 4
    single = []
    for place in range(3):
        run = slice(4 * place, 4 * place + 4)
        alone, against = gaussian_of(a[:, run], (4,)), gaussian_of(b[:, run], (4,))
        torch.testing.assert_close(gaussian.mean[place], alone.mean)
        torch.testing.assert_close(gaussian.covariance[place], alone.covariance)
        single.append(frechet(alone, against))
    assert frechet(gaussian, other) == pytest.approx(np.mean(single))
    assert frechet(gaussian, other.with_root()) == pytest.approx(np.mean(single))


def test_coefficients_keep_products():
    """The transform is orthonormal: inner products are those of pixels in [0, 1]."""
    x0 = 2 * torch.rand(6, 3, 16, 16) - 1
    unit, found = ((x0 + 1) / 2).flatten(1), packet_coefficients(x0)
    torch.testing.assert_close(found @ found.T, unit @ unit.T)
