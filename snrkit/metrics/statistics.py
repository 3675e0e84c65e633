"""Streaming moments of features and the Frechet distance between them, in float64.

The Frechet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, eq. 6),

    |mu1 - mu2|^2 + Tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2),

is computed from eigenvalues of symmetric matrices only; the root of the reference is kept with its statistics.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.distributed import World

AT_ONCE = 1024  # features whose outer products are summed by one product of matrices


class RunningMoments:
    """Sums of features and of their outer products, float64: constant memory, any order, any number of processes."""

    def __init__(self, dim: int) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """Count features (n, dim); they are kept until there are AT_ONCE, as a product costs as much for a few."""
        self._waiting.append(features.to(device="cpu", dtype=torch.float64))
        if sum(map(len, self._waiting)) >= AT_ONCE:
            self._sum()

    def _sum(self) -> None:
        if self._waiting:
            features, self._waiting = torch.cat(self._waiting), []
            self.count += len(features)
            self.total += features.sum(0)
            self.outer += features.T @ features

    def reduce(self, world: World) -> "FeatureGaussian":
        """The moments over all processes."""
        self._sum()
        if world.size > 1:
            for tensor in (self.count, self.total, self.outer):
                tensor.copy_(world.sum(tensor.to(world.device)).cpu())
        return self.gaussian()

    def gaussian(self) -> "FeatureGaussian":
        """The moments of what this process counted."""
        self._sum()
        count = float(self.count)
        mean = self.total / count
        covariance = (self.outer - count * torch.outer(mean, mean)) / max(1.0, count - 1)
        return FeatureGaussian(mean, (covariance + covariance.T) / 2, int(count))


@dataclass(frozen=True, slots=True)
class FeatureGaussian:
    """Mean (d,) and covariance (d, d), float64, of `count` feature vectors (0: not known)."""

    mean: Tensor
    covariance: Tensor
    count: int
    root: Tensor | None = None  # symmetric root of the covariance, where it was computed before

    def with_root(self) -> "FeatureGaussian":
        """The same with its root."""
        return (
            self
            if self.root is not None
            else FeatureGaussian(self.mean, self.covariance, self.count, root(self.covariance))
        )


def root(covariance: Tensor) -> Tensor:
    """The symmetric positive root of a covariance (d, d); negative eigenvalues of rounding are set to 0."""
    values, vectors = torch.linalg.eigh(covariance)
    symmetric: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return symmetric


def frechet(sample: FeatureGaussian, reference: FeatureGaussian) -> float:
    """The Frechet distance, at least 0 up to rounding."""
    half = reference.with_root().root
    assert half is not None
    cross = torch.linalg.eigvalsh(half @ sample.covariance @ half).clamp(min=0).sqrt().sum()
    distance = (sample.mean - reference.mean).square().sum()
    distance += sample.covariance.trace() + reference.covariance.trace() - 2 * cross
    return float(distance)
