"""Distances extrapolated to infinitely many images, as FD-infinity (Chong & Forsyth 2020, section 4).

A distance between n images and m of the reference, computed from moments or sorted values as if there were no others,
is too large on average. The excess falls as the counts grow,

    E[d(n, m)] = d + a/n + b/m + O(1/n^2, 1/m^2),

where a depends on the images that are scored, so that equal counts do not make a comparison fair. Both sets are put in
a fixed random order and cut into k parts, k = 1 .. K; d_k is the mean distance between the k pairs of parts. Then
E[d_k] = d + k (a/n + b/m), evenly spaced in 1/n, and the intercept of the line through d_1 .. d_K is d without either
excess. As the parts of one k are disjoint and use every image, the noise of first order is the same in all d_k, and is
that of the intercept too: the line removes the excess and adds little noise. Chong & Forsyth draw their subsets at
random and leave the reference as it is. Where its features are not known, so is it here: b/m remains.

The standard error follows from the influence of each image on the distance. For Gaussians N(mu, S) of the images and
N(nu, R) of the reference, with A = R^1/2 (R^1/2 S R^1/2)^-1/2 R^1/2, the linear map that transports the one to the
other (Dowson & Landau 1982; Takatsu 2011),

    psi(x) = 2 (mu - nu).(x - mu) + (x - mu).(I - A)(x - mu) - Tr((I - A) S),

and Var[psi]/n is the variance of the distance to first order, likewise for the reference with the two exchanged. Where
the distributions are equal the first order vanishes; what the estimate of Var[psi] then holds is the noise of A itself,
which is twice the variance of second order that a distance of moments has, and no less than what the intercept has:
intervals are somewhat too wide there.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from snrkit.base.streams import PARTS
from snrkit.metrics.estimate import Error, Estimate
from snrkit.metrics.statistics import FeatureGaussian, frechet, gaussian_of, in_packets

MOST_PARTS = 10
IMAGES_A_FEATURE = 2  # at least, in the smallest part: below, the excess is no longer a line in 1/n

Distance = Callable[[Tensor, Tensor], float]


def count_parts(images: int, reference: int, smallest: int) -> int:
    """Into how many parts both sets are cut at most, so that each holds `smallest` images; below 2 there is no line."""
    return min(MOST_PARTS, min(images, reference) // smallest)


def shuffled(rows: Tensor) -> Tensor:
    """The rows in a fixed order that follows no property of theirs; equal counts have the same."""
    return rows[torch.from_numpy(PARTS.open(len(rows)).permutation(len(rows)))]


def parts_of(rows: Tensor, count: int) -> list[Tensor]:
    """`count` disjoint runs of rows that differ by one in length at most."""
    edges = [len(rows) * place // count for place in range(count + 1)]
    return [rows[a:b] for a, b in pairwise(edges)]


def intercept_weights(count: int) -> Tensor:
    """(K,) weights of d_1 .. d_K in the intercept of their line of least squares."""
    k = torch.arange(1, count + 1, dtype=torch.float64)
    away = k - k.mean()
    return 1 / count - k.mean() * away / away.square().sum()


def extrapolated(distance: Distance, images: Tensor, reference: Tensor, count: int) -> float:
    """A distance between images (n, d) and a reference (m, d), both cut into 1 .. `count` parts, without its excess."""
    pairs = [zip(parts_of(images, k), parts_of(reference, k), strict=True) for k in range(1, count + 1)]
    means = [float(np.mean([distance(a, b) for a, b in of])) for of in pairs]
    return float(intercept_weights(count) @ torch.tensor(means, dtype=torch.float64))


def frechet_infinity(images: Tensor, reference: Tensor | FeatureGaussian, shape: tuple[int, ...]) -> Estimate | None:
    """FD-infinity of features (n, dim) against (m, dim), or against moments, which stay as they are.

    `shape` as of RunningMoments. None where there are fewer than twice IMAGES_A_FEATURE images a feature.
    """
    fixed = reference.with_root() if isinstance(reference, FeatureGaussian) else None
    rows = [shuffled(images), images if isinstance(reference, FeatureGaussian) else shuffled(reference)]
    count = count_parts(len(rows[0]), len(rows[1]), IMAGES_A_FEATURE * shape[-1])
    if count < 2:
        return None

    def distance(a: Tensor, b: Tensor) -> float:
        return frechet(gaussian_of(a, shape), fixed or gaussian_of(b, shape))

    value = extrapolated(distance, rows[0], rows[1], count)
    ours, theirs = gaussian_of(rows[0], shape).with_root(), fixed or gaussian_of(rows[1], shape).with_root()
    own = first_order_error(rows[0], ours, theirs, shape)
    return Estimate(value, Error(own, 0.0 if fixed is not None else first_order_error(rows[1], theirs, ours, shape)))


def first_order_error(features: Tensor, own: FeatureGaussian, other: FeatureGaussian, shape: tuple[int, ...]) -> float:
    """The standard error of a Frechet distance that comes from features (n, dim), of moments `own`, on one side."""
    away = in_packets(features.double(), shape) - own.mean[..., None, :]
    transport = transport_map(own, other)
    moved = 2 * (own.mean - other.mean)[..., None, :] + away - away @ transport
    influence = (moved * away).sum(-1)  # (n,) or (packets, n)
    of_image = influence if influence.ndim == 1 else influence.mean(0)
    return float(of_image.std() / len(features) ** 0.5)


def transport_map(source: FeatureGaussian, target: FeatureGaussian) -> Tensor:
    """The symmetric matrix (..., d, d) that takes deviations under `source` to those under `target`, which has a root.

    Directions in which the two share no variance are taken to 0.
    """
    half = target.with_root().root
    assert half is not None
    values, vectors = torch.linalg.eigh(half @ source.covariance @ half)
    known = values > 1e-12 * values.amax(-1, keepdim=True)
    inverse = torch.where(known, values.clamp(min=1e-300).rsqrt(), 0.0)
    turned = half @ vectors
    moved: Tensor = (turned * inverse[..., None, :]) @ turned.mT
    return moved
