"""Scores images against the training split of an experiment's data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.gradual import Done, Gradual, finished
from snrkit.base.streams import MEMORISATION
from snrkit.data.dataset import Dataset, chunks
from snrkit.experiment.images import OpenedData
from snrkit.experiment.opening import Setting
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.extractors import Extractor, making_extractor
from snrkit.metrics.features import FeatureSet, extracting, extracting_reference
from snrkit.metrics.memorisation import Memorisation, memorisation, nearest
from snrkit.metrics.scores import Scores, score

MEMORISATION_IMAGES = 4096


@dataclass(frozen=True)
class Scorer:
    """An extractor with its features of the training split."""

    extractor: Extractor
    reference: FeatureSet
    config: MetricsConfig
    data: OpenedData
    world: World

    def features(self, samples: Dataset, indices: Sequence[int]) -> FeatureSet:
        """Moments and kept features of the images at `indices`."""
        return finished(self.extracting(samples, indices))

    def extracting(self, samples: Dataset, indices: Sequence[int], of: str = "features") -> Gradual[FeatureSet]:
        """As `features`, saying how many images were looked at."""
        return extracting(self.extractor, samples, indices, self.config.batch, self.world, of)

    def ranges(self, samples: Dataset) -> tuple[Scores, ...]:
        """The scores of images over metrics.ranges disjoint ranges."""
        return finished(self.scoring(samples))

    def scoring(self, samples: Dataset) -> Gradual[tuple[Scores, ...]]:
        """As `ranges`, saying how far it has come, with the newest value of the score that decides."""
        parts, found, note = disjoint(samples.count, self.config.ranges), list[Scores](), ""
        for number, part in enumerate(parts, 1):
            of = f"range {number} of {len(parts)}"
            features = yield from self.extracting(samples, part, f"features, {of}")
            yield Done(f"scores, {of}", note=note)
            found.append(score(features, self.reference, self.config))
            note = f"{self.config.decide} {found[-1].values[self.config.decide]:.4g}"
        return tuple(found)

    def memorisation(self, images: Dataset) -> Memorisation | None:
        """Of images, at most MEMORISATION_IMAGES, against the training split, mirrored too where training mirrors.

        None without held-out images, and in processes that do not lead.
        """
        if not self.data.split.held or not self.world.leads:
            return None
        first = range(min(images.count, MEMORISATION_IMAGES))
        return memorisation(nearest(images.x0(first), self._trained()), self._of_held)

    @cached_property
    def _of_held(self) -> Tensor:
        """How near held-out images come, which is the same for all images that are scored."""
        held = MEMORISATION.open().permutation(self.data.split.held)[:MEMORISATION_IMAGES].tolist()
        return nearest(self.data.labelled.x0(held), self._trained())

    def _trained(self) -> Iterator[Tensor]:
        """The training split in batches, mirrored too where training mirrors."""
        for run in chunks(self.data.split.train, 8192):
            x0 = self.data.labelled.x0(run)
            yield x0
            if self.data.source.flip:
                yield x0.flip(3)


def open_scorer(setting: Setting, config: MetricsConfig) -> Scorer:
    """The extractor of an experiment and its features of the training split."""
    return finished(opening_scorer(setting, config))


def opening_scorer(setting: Setting, config: MetricsConfig) -> Gradual[Scorer]:
    """As `open_scorer`, saying how far a classifier is trained, and how many images were looked at."""
    data, world = setting.data, setting.world
    if not world.leads:
        world.barrier()  # the leader fills the cache before the others look
    extractor = yield from making_extractor(config, data.labelled, data.split, world.device)
    if world.leads:
        world.barrier()
    reference = yield from extracting_reference(extractor, data.labelled, data.split.train, config.batch, world)
    return Scorer(extractor, reference, config, data, world)


def disjoint(count: int, ranges: int) -> list[range]:
    """`ranges` disjoint runs of equal length over `count` images; a remainder is left out. SnrkitError when too few."""
    size = count // ranges
    if size < 2:
        raise SnrkitError(f"{count} images do not make {ranges} ranges; make more images or lower metrics.ranges.")
    return [range(i * size, (i + 1) * size) for i in range(ranges)]
