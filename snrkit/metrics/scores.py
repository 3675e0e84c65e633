"""FD/FID, IS, KID, precision and recall of images against a reference: the one door to torch-fidelity's metrics.

Feature statistics are streamed in float64; KID and precision/recall keep at most KEPT features of each side. Known
traps of torch-fidelity are closed here: too few images for its splits and subsets, unknown keyword arguments, caches by
name. IS splits the images after torch-fidelity's own fixed shuffle, as it does by default.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from snrkit.base.arrays import DAMAGED, read_array
from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.files import write_bytes
from snrkit.base.numerics import NUMERICS
from snrkit.base.streams import KEPT_FEATURES
from snrkit.data.dataset import Dataset, chunks, fingerprint
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import Extractor, cache_folder
from snrkit.metrics.statistics import Gaussian, RunningMoments, frechet

KEPT = 10_000
IS_SPLITS = 10


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """What is known of a set of images: moments of all its features, and up to KEPT features and logits themselves."""

    gaussian: Gaussian
    features: Tensor | None = None  # (n, dim) float32
    logits: Tensor | None = None  # (n, classes) float32


def extract(extractor: Extractor, dataset: Dataset, indices: Sequence[int], batch: int, world: World) -> FeatureSet:
    """The features of the chosen images, each process taking a contiguous share."""
    if len(indices) > KEPT:  # what is kept must not be the first classes of a sorted set
        indices = KEPT_FEATURES.open(len(indices)).permutation(np.asarray(indices)).tolist()
    share = np.array_split(np.arange(len(indices)), world.size)[world.rank]
    moments = RunningMoments(extractor.dim)
    features, logits = [torch.zeros(0, extractor.dim)], [torch.zeros(0, extractor.classes)]
    for run in chunks(share.tolist(), batch):
        found, scores = extractor.run(dataset.pixels([indices[i] for i in run]))
        moments.add(found)
        features.append(found[: max(0, KEPT - run[0])])
        if scores is not None:
            logits.append(scores)
    kept = torch.cat(world.gather(torch.cat(features)))[:KEPT]
    all_logits = torch.cat(world.gather(torch.cat(logits))) if extractor.classes else None
    return FeatureSet(moments.reduce(world), kept, all_logits)


def reference_features(
    extractor: Extractor, dataset: Dataset, indices: Sequence[int], batch: int, world: World
) -> FeatureSet:
    """As `extract`, cached under the content of images, weights and settings, with the covariance's root."""
    rows = np.asarray(indices, dtype=np.int64).tobytes()
    path = (
        cache_folder() / f"reference-{fingerprint(str(NUMERICS), dataset.fingerprint, rows, extractor.key)}.safetensors"
    )
    if not world.any(not path.is_file()):  # all processes must take the same way
        stored = load(path.read_bytes())
        gaussian = Gaussian(stored["mean"], stored["covariance"], int(stored["count"]), stored["root"])
        return FeatureSet(gaussian, stored["features"])
    found = extract(extractor, dataset, indices, batch, world)
    gaussian = found.gaussian.with_root()
    assert gaussian.root is not None
    assert found.features is not None
    tensors = {
        "mean": gaussian.mean, "covariance": gaussian.covariance, "root": gaussian.root.contiguous(),
        "count": torch.tensor(gaussian.count), "features": found.features.contiguous(),
    }  # fmt: skip
    if world.leads:
        write_bytes(path, save(tensors))
    return FeatureSet(gaussian, found.features)


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one set of images; None where one does not apply."""

    images: int
    fd: float
    inception_score: float | None = None
    kid: float | None = None
    precision: float | None = None
    recall: float | None = None
    warnings: list[str] = field(default_factory=list)


def score(found: FeatureSet, reference: FeatureSet, config: MetricsConfig) -> Scores:
    """All scores of `found` against `reference`, computed in one process."""
    count, dim = found.gaussian.count, len(found.gaussian.mean)
    if count < 2:
        raise SnrkitError(f"{count} image is too few to score; make at least 2, better more than {dim}.")
    if len(reference.gaussian.mean) != dim:
        raise SnrkitError(
            f"the reference has {len(reference.gaussian.mean)} features and the images {dim}; they differ."
        )
    warnings = []
    if 0 < reference.gaussian.count <= dim:
        warnings.append(
            f"the reference's {reference.gaussian.count} images are too few for {dim} features: its covariance is "
            "singular; trust KID."
        )
    if count <= dim:
        warnings.append(
            f"{count} images are too few for {dim} features: the covariance is singular and the distance biased; "
            f"use more than {dim}, or trust KID."
        )
    fd = frechet(found.gaussian, reference.gaussian)
    inception_score = None if found.logits is None else _inception_score(found.logits, warnings)
    if found.features is None or reference.features is None:
        return Scores(count, fd, inception_score, warnings=warnings)
    precision, recall = _precision_recall(found.features, reference.features, config, warnings)
    kid = _kid(found.features, reference.features, config)
    return Scores(count, fd, inception_score, kid, precision, recall, warnings)


def _inception_score(logits: Tensor, warnings: list[str]) -> float:
    from torch_fidelity.metric_isc import isc_features_to_metric

    splits = min(IS_SPLITS, len(logits) // 2) or 1
    if splits < IS_SPLITS:
        warnings.append(f"IS over {splits} splits instead of {IS_SPLITS}, as there are {len(logits)} images.")
    return float(isc_features_to_metric(logits, splits=splits)["inception_score_mean"])


def _kid(features: Tensor, reference: Tensor, config: MetricsConfig) -> float:
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(config.kid_subset_size, len(features), len(reference))
    subsets = 1 if size == len(features) == len(reference) else config.kid_subsets
    found = kid_features_to_metric(
        features.double(), reference.double(), kid_subsets=subsets, kid_subset_size=size, verbose=False
    )
    return float(found["kernel_inception_distance_mean"])


def _precision_recall(
    features: Tensor, reference: Tensor, config: MetricsConfig, warnings: list[str]
) -> tuple[float | None, float | None]:
    from torch_fidelity.metric_prc import prc_features_to_metric

    if min(len(features), len(reference)) <= config.neighborhood:
        warnings.append(f"precision and recall need more than {config.neighborhood} images on either side.")
        return None, None
    found = prc_features_to_metric(
        features,
        reference,
        prc_neighborhood=config.neighborhood,
        prc_batch_size=KEPT,
        save_cpu_ram=False,
        verbose=False,
    )
    return float(found["precision"]), float(found["recall"])


def load_statistics(path: Path) -> Gaussian:
    """Mean and covariance of an EDM-style .npz (`mu`, `sigma`). SnrkitError when it holds none."""
    try:
        mean, covariance = (torch.from_numpy(read_array(path, name)).double() for name in ("mu", "sigma"))
    except (TypeError, *DAMAGED) as error:
        raise SnrkitError(f"{path} holds no statistics mu and sigma ({error}); give an EDM-style .npz.") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise SnrkitError(f"{path}: mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} do not fit together.")
    return Gaussian(mean, covariance, 0)


@dataclass(frozen=True, slots=True)
class Memorisation:
    """Distances to the nearest training image, root mean square per pixel in [-1, 1]."""

    samples: float  # median over samples
    held_out: float  # median over held-out images
    nearer: float  # share of (sample, held-out) pairs in which the sample is nearer; 0.5 when alike


@torch.no_grad()
def memorisation(samples: Tensor, held: Tensor, train: Callable[[], Iterable[Tensor]]) -> Memorisation:
    """Compare how near samples (n, *) and held-out images (m, *) come to training images, all in [-1, 1].

    `train` gives the training images in batches, once for each of the two.
    """
    of_samples, of_held = nearest(samples, train()), nearest(held, train())
    below = torch.searchsorted(of_held.sort().values, of_samples)
    nearer = 1 - float(below.double().mean()) / len(of_held)
    return Memorisation(float(of_samples.median()), float(of_held.median()), nearer)


def nearest(images: Tensor, train: Iterable[Tensor]) -> Tensor:
    """Distance (n,) of each image to its nearest training image, root mean square per pixel, in float64."""
    flat = images.flatten(1).double()
    best = torch.full((len(flat),), torch.inf, dtype=torch.float64)
    for batch in train:
        rows = batch.flatten(1).double()
        for part in torch.split(torch.arange(len(flat)), 4096):
            best[part] = torch.minimum(best[part], torch.cdist(flat[part], rows).amin(1))
    return best / math.sqrt(flat.shape[1])
