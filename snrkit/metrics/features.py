"""What scores are computed from: moments of all features of a set of images, streamed in float64, and some of them.

At most KEPT features of each side, and those of at most KEPT_BYTES, are kept for the scores that moments do not give.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snrkit.base.ahead import ahead, behind, threads
from snrkit.base.arrays import DAMAGED, read_array
from snrkit.base.cache import keep, known
from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.gradual import Done, Gradual, finished
from snrkit.base.numerics import NUMERICS
from snrkit.base.streams import KEPT_FEATURES
from snrkit.base.transfer import Arriving
from snrkit.data.dataset import Dataset, chunks, fingerprint
from snrkit.metrics.extractors import Extractor
from snrkit.metrics.statistics import FeatureGaussian, RunningMoments

KEPT = 10_000
KEPT_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """What is known of a set of images: moments of all its features, and some features and logits themselves."""

    gaussian: FeatureGaussian
    features: Tensor | None = None  # (n, dim) float32
    logits: Tensor | None = None  # (n, classes) float32
    floors: dict[int, float | None] = field(default_factory=dict, compare=False, repr=False)
    """As a reference: the floor of FD by the number of images that were scored against it, once it is known."""


def extract(extractor: Extractor, dataset: Dataset, indices: Sequence[int], batch: int, world: World) -> FeatureSet:
    """The features of the chosen images, each process taking a contiguous share."""
    return finished(extracting(extractor, dataset, indices, batch, world))


def extracting(
    extractor: Extractor,
    dataset: Dataset,
    indices: Sequence[int],
    batch: int,
    world: World,
    what: str = "features of the images",
) -> Gradual[FeatureSet]:
    """As `extract`, saying how many images were looked at."""
    most = min(KEPT, max(2, KEPT_BYTES // (4 * extractor.dim)))
    if len(indices) > most:  # what is kept must not be the first classes of a sorted set
        indices = KEPT_FEATURES.open(len(indices)).permutation(np.asarray(indices)).tolist()
    share = np.array_split(np.arange(len(indices)), world.size)[world.rank]
    moments = RunningMoments(*extractor.shape)
    features, logits = [torch.zeros(0, extractor.dim)], [torch.zeros(0, extractor.classes)]

    def read(run: Sequence[int]) -> Tensor:
        return dataset.pixels([indices[i] for i in run])

    runs = list(chunks(share.tolist(), batch))
    asked = (_asked(extractor, pixels) for pixels in ahead(read, runs, readers(world)))
    yield Done(what, 0, len(share))
    for run, (found, scores) in zip(runs, behind(asked), strict=True):
        here = found.wait()
        moments.add(here)
        if run[0] < most:
            features.append(here[: most - run[0]].clone())  # the whole would keep memory that is pinned
        if scores is not None:
            logits.append(scores.wait().clone())
        yield Done(what, run[-1] + 1 - runs[0][0], len(share))
    kept = torch.cat(world.gather(torch.cat(features)))[:most]
    all_logits = torch.cat(world.gather(torch.cat(logits))) if extractor.classes else None
    return FeatureSet(moments.reduce(world), kept, all_logits)


def readers(world: World) -> int:
    """Threads that read ahead of the extractor; none where it fills all cores itself, and they would hold it up."""
    filled = world.device.type == "cpu" and torch.get_num_threads() * world.size >= (os.cpu_count() or 1)
    return 0 if filled else threads(world.size)


def _asked(extractor: Extractor, pixels: Tensor) -> tuple[Arriving, Arriving | None]:
    """(Features, logits) of images, on their way to the host."""
    features, logits = extractor.run(pixels)
    return Arriving(features), None if logits is None else Arriving(logits)


def reference_features(
    extractor: Extractor, dataset: Dataset, indices: Sequence[int], batch: int, world: World
) -> FeatureSet:
    """As `extract`, cached under the content of images, weights and settings, with the covariance's root."""
    return finished(extracting_reference(extractor, dataset, indices, batch, world))


def extracting_reference(
    extractor: Extractor, dataset: Dataset, indices: Sequence[int], batch: int, world: World
) -> Gradual[FeatureSet]:
    """As `reference_features`, saying how many images were looked at."""
    rows = np.asarray(indices, dtype=np.int64).tobytes()
    name = f"reference-{fingerprint(str(NUMERICS), dataset.fingerprint, rows, extractor.key)}"
    stored = known(name) or {}
    if not world.any(not stored):  # all processes must take the same way
        gaussian = FeatureGaussian(stored["mean"], stored["covariance"], int(stored["count"]), stored["root"])
        return FeatureSet(gaussian, stored["features"])
    found = yield from extracting(extractor, dataset, indices, batch, world, "features of the reference")
    yield Done("root of the reference's covariance")
    gaussian = found.gaussian.with_root()
    assert gaussian.root is not None
    assert found.features is not None
    tensors = {
        "mean": gaussian.mean,
        "covariance": gaussian.covariance,
        "root": gaussian.root.contiguous(),
        "count": torch.tensor(gaussian.count),
        "features": found.features.contiguous(),
    }
    if world.leads:
        keep(name, tensors)
    return FeatureSet(gaussian, found.features)


def load_statistics(path: Path) -> FeatureGaussian:
    """Mean and covariance of an EDM-style .npz (`mu`, `sigma`). SnrkitError when it holds none."""
    try:
        mean, covariance = (torch.from_numpy(read_array(path, name)).double() for name in ("mu", "sigma"))
    except (TypeError, *DAMAGED) as error:
        raise SnrkitError(f"{path} holds no statistics mu and sigma ({error}); give an EDM-style .npz.") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise SnrkitError(f"{path}: mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} do not fit together.")
    return FeatureGaussian(mean, covariance, 0)
