"""Toy distributions that carry their exact denoisers: Gaussian, mixture of Gaussians, and a finite set of images.

All three are mixtures of N(mean_k, variance_k I) with weights w_k (a finite set has variance 0), for which the noisy
marginal is a mixture of N(alpha mean_k, (alpha^2 variance_k + sigma^2) I) and

    E[x0 | x] = sum_k p(k | x) [mean_k + alpha variance_k/(alpha^2 variance_k + sigma^2) (x - alpha mean_k)].

Asked with told=None, an exact denoiser answers by the posterior over the levels of its `prior`:
D(x) = sum_j p(level_j | x) D(x; level_j).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.streams import GAUSSIAN, MIXTURE, MIXTURE_MEANS
from snrkit.base.value import Count, Seed, Side
from snrkit.data.dataset import Dataset, Exact, OpensDataset, Source, memory_dataset
from snrkit.diffusion.level import Level, broadcast
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, from_x0
from snrkit.diffusion.process import Process

if TYPE_CHECKING:
    from snrkit.data import AnySource

Shape = tuple[Side, Side, Side]


@runtime_checkable
class TakesMemory(Protocol):
    """A source whose images are made, as many and as large as it says."""

    def memory(self) -> int:
        """Bytes that opening it takes."""


@dataclass(frozen=True, slots=True)
class MixtureDenoiser:
    """The exact denoiser of a mixture: means (K, *), variances (K,) or (K, *) per dimension, weights (K,), float64."""

    process: Process
    means: Tensor
    variances: Tensor
    weights: Tensor
    prior: Tensor | None = None  # logsnr (J,) of equally likely levels, for told=None

    def __call__(
        self, x: Tensor, level: Level, *, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        """The exact belief about x (B, *), read at `level`, told as asked."""
        if told is None:
            return from_x0(x, self._blind(x), level)
        known = told if isinstance(told, Level) else level
        return from_x0(x, self.posterior(x, known)[0], level)

    def posterior(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """(E[x0 | x] (B, *), ln p(x) (B,)) at `level`."""
        alpha, sigma = level.scales(x[:, None])
        means, variances = self.means.to(x), self.variances.to(x)
        variances = variances.reshape(*variances.shape, *(1,) * (means.ndim - variances.ndim))
        spread = alpha**2 * variances + sigma**2
        away = x[:, None] - alpha * means
        logits = -(away**2 / spread + spread.log()).flatten(2).sum(-1) / 2
        logits = logits + self.weights.to(x).log()
        gain = alpha * variances / spread
        share = torch.softmax(logits, 1).reshape(*logits.shape, *(1,) * (x.ndim - 1))
        return (share * (means + gain * away)).sum(1), torch.logsumexp(logits, 1)

    def _blind(self, x: Tensor) -> Tensor:
        if self.prior is None:
            raise SnrkitError("this exact denoiser has no prior over levels, so it cannot answer told=None")
        answers = [self.posterior(x, self.process.level(logsnr)) for logsnr in self.prior]
        share = torch.softmax(torch.stack([log_p for _, log_p in answers]), 0)
        return sum((broadcast(p, x) * x0 for p, (x0, _) in zip(share, answers, strict=True)), torch.zeros_like(x))


def gaussian_denoiser(
    process: Process, mean: float | Tensor, variance: float | Tensor, shape: Shape, prior: Tensor | None = None
) -> Denoiser:
    """The exact denoiser of N(mean, variance), both numbers or per dimension (C, H, W)."""
    means = torch.as_tensor(mean, dtype=torch.float64).expand(shape)
    variances = torch.as_tensor(variance, dtype=torch.float64).expand(shape)
    return MixtureDenoiser(process, means[None], variances[None], torch.ones(1, dtype=torch.float64), prior)


class Gaussian(Source):
    """Independent pixels N(mean, std^2)."""

    kind: Literal["gaussian"] = "gaussian"
    shape: Shape = Field(default=(1, 8, 8), description="(C, H, W) of its images")
    mean: float = Field(default=0.0, description="mean of each pixel")
    std: float = Field(default=0.5, gt=0, description="standard deviation of each pixel")
    count: Count = Field(default=4096, description="images that are drawn")
    seed: Seed = Field(default=0, description="seed of the images")

    def memory(self) -> int:
        """Of the draws, scaled, in float32."""
        return 12 * self.count * math.prod(self.shape)

    def open(self) -> Dataset:
        """`count` float images and their exact denoiser."""
        draws = GAUSSIAN.open(self.seed).standard_normal((self.count, *self.shape), dtype=np.float32)
        pixels = torch.from_numpy(draws) * self.std + self.mean

        def exact(process: Process, prior: Tensor | None = None) -> Denoiser:
            return gaussian_denoiser(process, self.mean, self.std**2, self.shape, prior)

        return memory_dataset("gaussian", pixels, exact=exact)


class Mixture(Source):
    """`components` equally likely Gaussians of the same std round random means; labels name the component."""

    kind: Literal["mixture"] = "mixture"
    shape: Shape = Field(default=(1, 8, 8), description="(C, H, W) of its images")
    components: int = Field(default=8, ge=1, le=10_000, description="number of Gaussians, each of a label of its own")
    spread: float = Field(default=0.5, gt=0, description="standard deviation of the means")
    std: float = Field(
        default=0.1, gt=0, description="standard deviation of each pixel about the mean of its component"
    )
    count: Count = Field(default=4096, description="images that are drawn")
    seed: Seed = Field(default=0, description="seed of the means and of the images")

    def memory(self) -> int:
        """Of the means and, for every image, its mean, its noise and their sum in float64."""
        return 8 * (4 * self.count + self.components) * math.prod(self.shape)

    def open(self) -> Dataset:
        """`count` float images and their exact denoiser."""
        means = (
            torch.from_numpy(MIXTURE_MEANS.open(self.seed).standard_normal((self.components, *self.shape)))
            * self.spread
        )
        rng = MIXTURE.open(self.seed)
        labels = torch.from_numpy(rng.integers(self.components, size=self.count))
        noise = torch.from_numpy(rng.standard_normal((self.count, *self.shape)))

        def exact(process: Process, prior: Tensor | None = None) -> Denoiser:
            variances = torch.full((self.components,), self.std**2, dtype=torch.float64)
            weights = torch.full((self.components,), 1 / self.components, dtype=torch.float64)
            return MixtureDenoiser(process, means, variances, weights, prior)

        return memory_dataset("mixture", (means[labels] + self.std * noise).float(), labels, exact)


class Empirical(Source):
    """The first `images` images of another source as a finite distribution: its exact denoiser memorises."""

    kind: Literal["empirical"] = "empirical"
    of: "AnySource" = Field(description="data set whose first images it takes")
    images: Count = Field(default=100, description="number of images that it takes, all where there are fewer")

    def memory(self) -> int:
        """Of the source's images, where these are made."""
        source: object = self.of
        return source.memory() if isinstance(source, TakesMemory) else 0

    def open(self) -> Dataset:
        """The images and the exact denoiser of their empirical distribution."""
        source: OpensDataset = self.of
        full = source.open()
        kept = full.pixels(range(min(self.images, full.count)))
        labels = None if full.labels is None else full.labels[: len(kept)]
        made = memory_dataset(f"empirical-{full.name}", kept, labels, finite_denoiser(full.x0(range(len(kept)))))
        return replace(made, conversions=full.conversions)


def finite_denoiser(x0: Tensor) -> Exact:
    """The exact denoiser of the uniform distribution over the images x0 (n, C, H, W)."""
    points, count = x0.double(), len(x0)

    def exact(process: Process, prior: Tensor | None = None) -> Denoiser:
        weights = torch.full((count,), 1 / count, dtype=torch.float64)
        return MixtureDenoiser(process, points, torch.zeros(count, dtype=torch.float64), weights, prior)

    return exact


def blind_prior(logsnr: Callable[[Tensor], Tensor], levels: int = 64) -> Tensor:
    """`levels` equally likely logsnr (levels,) at the mid-quantiles of an inverse CDF."""
    return logsnr((torch.arange(levels, dtype=torch.float64) + 0.5) / levels)
