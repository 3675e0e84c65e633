"""A model of power spectra, from which a sampler draws one for each image before it begins.

phi = ln P of the training images, as principal components with a mixture of Gaussians over them; every class has its
own weights over the shared components of the mixture, so that small classes are not over-fitted. Draws are held within
the range of the training images, ring by ring. A reconstruction after Esteves & Makadia 2026.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from snrkit.spectral.spectra import Spectra

COMPONENTS, MIXTURE, EACH = 8, 16, 40  # at most: principal components, Gaussians; training images for each Gaussian
FLOOR = 1e-3  # of the mixture's covariances
RANGE = (0.005, 0.995)  # quantiles of the training images that draws are held within
PHOTOGRAPHIC = 17


@dataclass(frozen=True, slots=True)
class SpectrumModel:
    """D = K + 1 rings, C principal components, M Gaussians; float64."""

    mean: Tensor  # (D,) of phi
    axes: Tensor  # (C, D)
    centres: Tensor  # (M, C)
    factors: Tensor  # (M, C, C), lower triangular roots of the covariances
    weights: Tensor  # (classes + 1, M); the last row is of all images, for no label
    low: Tensor  # (D,)
    high: Tensor  # (D,)
    class_means: Tensor  # (classes, D) of phi; none without labels

    def draw(self, u: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        """P (B, D) of uniforms u (B,), normals z (B, C) and labels (B,), -1 or None for none."""
        rows = torch.full((len(u),), -1) if labels is None else labels.cpu()
        shares = self.weights[rows].cumsum(1)
        chosen = (u.to(shares)[:, None] * shares[:, -1:] > shares).sum(1).clamp(max=len(self.centres) - 1)
        placed = self.centres[chosen] + (self.factors[chosen] @ z.to(self.mean)[:, :, None])[:, :, 0]
        phi = self.mean + placed @ self.axes
        return torch.minimum(torch.maximum(phi, self.low), self.high).exp()

    def tensors(self) -> dict[str, Tensor]:
        """What a run keeps of it."""
        return {name: tensor.clone().contiguous() for name, tensor in asdict(self).items()}


def photographic() -> SpectrumModel:
    """One spectrum of PHOTOGRAPHIC rings that falls as those of photographs do, for runs that need any."""
    phi = -2 * torch.arange(1, PHOTOGRAPHIC + 1, dtype=torch.float64).log()
    none = phi[None][:0]
    return SpectrumModel(
        phi, none, phi.new_zeros(1, 0), phi.new_zeros(1, 0, 0), phi.new_ones(1, 1), phi, phi, phi[None]
    )


def load_spectrum_model(tensors: Mapping[str, Tensor]) -> SpectrumModel:
    """The model of such tensors."""
    return SpectrumModel(**tensors)


def fit_spectrum_model(spectra: Spectra) -> SpectrumModel:
    """Of the images that are trained on; the same for the same images."""
    phi = spectra.power[spectra.train].log()
    mean = phi.mean(0)
    count = min(COMPONENTS, phi.shape[1], len(phi) - 1)
    axes = torch.linalg.svd(phi - mean, full_matrices=False).Vh[:count] if count else phi[:0]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # the same way round everywhere
    placed = (phi - mean) @ axes.T
    centres, factors, shares = _mixture(placed)
    low, high = (torch.quantile(phi, share, dim=0) for share in RANGE)
    own = None if spectra.labels is None else spectra.labels[spectra.train]
    means = spectra.class_means.log() if own is not None else mean[None][:0]
    return SpectrumModel(mean, axes, centres, factors, _weights(shares, own, spectra.classes), low, high, means)


def _mixture(placed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(centres, factors, responsibilities (m, M)) of points (m, C)."""
    from sklearn.mixture import GaussianMixture

    if placed.shape[1] == 0:
        return placed.new_zeros(1, 0), placed.new_zeros(1, 0, 0), placed.new_ones(len(placed), 1)
    count = max(1, min(MIXTURE, len(placed) // EACH))
    fitted = GaussianMixture(count, reg_covar=FLOOR, random_state=0).fit(placed.numpy())
    covariances = torch.from_numpy(fitted.covariances_)
    shares = torch.from_numpy(fitted.predict_proba(placed.numpy()))
    return torch.from_numpy(fitted.means_), torch.linalg.cholesky(covariances), shares


def _weights(shares: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """(classes + 1, M): a class's mean responsibilities, with one more image that is like all."""
    pooled = shares.mean(0)
    rows = []
    for label in range(classes if labels is not None else 0):
        chosen = shares[labels == label]
        rows.append((chosen.sum(0) + pooled) / (len(chosen) + 1))
    return torch.stack([*rows, pooled])
