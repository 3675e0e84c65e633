"""Streaming moments of features and the Frechet distance between them, in float64.

The Frechet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, eq. 6),

    |mu1 - mu2|^2 + Tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2),

is computed from eigenvalues of symmetric matrices only; the root of the reference is kept with its statistics. Features
in packets have moments for each, and their distance is the mean over packets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.distributed import World

AT_ONCE = 1024  # images whose outer products are summed by one product of matrices
NUMBERS_AT_ONCE = 2**25  # that wait for it at most


class RunningMoments:
    """Sums of features and of their outer products, float64: constant memory, any order, any number of processes.

    `shape` is (d,), or (packets, d) for features of which each run of d is a packet.
    """

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.count = torch.zeros((), dtype=torch.float64)
        self.total = torch.zeros(shape, dtype=torch.float64)
        self.outer = torch.zeros(*shape, shape[-1], dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """Count features (n, dim); they are kept until there are AT_ONCE, as a product costs as much for a few."""
        self._waiting.append(features.to(device="cpu", dtype=torch.float64))
        if sum(map(len, self._waiting)) >= min(AT_ONCE, NUMBERS_AT_ONCE // self.total.numel()):
            self._sum()

    def _sum(self) -> None:
        if self._waiting:
            features, self._waiting = torch.cat(self._waiting), []
            self.count += len(features)
            rows = in_packets(features, self.shape)
            self.total += rows.sum(-2)
            self.outer += rows.mT @ rows

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
        covariance = (self.outer - count * (mean[..., :, None] * mean[..., None, :])) / max(1.0, count - 1)
        return FeatureGaussian(mean, (covariance + covariance.mT) / 2, int(count))


def in_packets(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Features (n, dim) by packet: (packets, n, d) for a shape (packets, d), and as they are for (dim,)."""
    return features if len(shape) == 1 else features.view(len(features), *shape).transpose(0, 1)


def gaussian_of(features: Tensor, shape: tuple[int, ...]) -> "FeatureGaussian":
    """The moments of features (n, dim), in packets where `shape` is (packets, d)."""
    moments = RunningMoments(*shape)
    moments.add(features)
    return moments.gaussian()


@dataclass(frozen=True, slots=True)
class FeatureGaussian:
    """Mean (d,) and covariance (d, d), float64, of `count` feature vectors (0: not known).

    Of features in packets they are (packets, d) and (packets, d, d).
    """

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

    @property
    def dim(self) -> int:
        """Features, or those of a packet."""
        return self.mean.shape[-1]


def root(covariance: Tensor) -> Tensor:
    """The symmetric positive root of covariances (..., d, d); negative eigenvalues of rounding are set to 0."""
    values, vectors = torch.linalg.eigh(covariance)
    symmetric: Tensor = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
    return symmetric


def too_few(count: int, reference: FeatureGaussian) -> bool:
    """Whether so many images, or those of the reference, are no more than the features, which shifts `frechet`."""
    return count <= reference.dim or 0 < reference.count <= reference.dim


def frechet(sample: FeatureGaussian, reference: FeatureGaussian) -> float:
    """The Frechet distance, at least 0 up to rounding; of features in packets the mean of theirs."""
    half = reference.with_root().root
    assert half is not None
    if sample.mean.ndim == 2:
        return _mean_frechet(sample, reference, half)
    cross = torch.linalg.eigvalsh(half @ sample.covariance @ half).clamp(min=0).sqrt().sum()
    distance = (sample.mean - reference.mean).square().sum()
    distance += sample.covariance.trace() + reference.covariance.trace() - 2 * cross
    return float(distance)


def _mean_frechet(sample: FeatureGaussian, reference: FeatureGaussian, half: Tensor) -> float:
    """The mean of the distances in packets."""
    cross = torch.linalg.eigvalsh(half @ sample.covariance @ half).clamp(min=0).sqrt().sum(-1)
    variances = (sample.covariance + reference.covariance).diagonal(dim1=-2, dim2=-1).sum(-1)
    return float(((sample.mean - reference.mean).square().sum(-1) + variances - 2 * cross).mean())
