"""The scores of images against a reference: one table, read by whatever computes, summarises or shows them.

    SCORES     one record a score: FD/FID, IS, KID, precision, recall
    score      computes all of them for one set of images
    summarise  mean and spread of each over ranges of seeds
    columns    which of them a table shows

A further score is a further record in SCORES. The first, PRIMARY, is the distance that picks checkpoints and
coefficients, that verdicts are about, and that every table shows with its spread.

This is also the one door to torch-fidelity's metrics, whose known traps are closed here: too few images for its splits
and subsets, unknown keyword arguments, caches by name. IS splits the images after torch-fidelity's own fixed shuffle,
as it does by default.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.records import FLAT
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.features import KEPT, FeatureSet
from snrkit.metrics.kernel import kernel_distance
from snrkit.metrics.statistics import frechet

IS_SPLITS = 10
INCEPTION = "inception"  # the features whose distance is called FID

Need = Literal["features", "logits", "reference features"]
Page = Literal["scores", "checkpoints", "compare", "sweep"]  # tables of scores


@dataclass(frozen=True)
class Pair:
    """The images that are scored and those they are scored against; scores add to `warnings`."""

    found: FeatureSet
    reference: FeatureSet
    config: MetricsConfig
    warnings: list[str]

    def has(self, need: Need) -> bool:
        """Whether something that not every set of images or statistics offers is there."""
        of = {
            "features": self.found.features,
            "logits": self.found.logits,
            "reference features": self.reference.features,
        }
        return of[need] is not None

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        """Features (n, dim) of the images and (m, dim) of the reference, at most KEPT of each."""
        assert self.found.features is not None
        assert self.reference.features is not None
        return self.found.features, self.reference.features

    @cached_property
    def precision_recall(self) -> tuple[float | None, float | None]:
        """Both at once, since they share their distances."""
        return _precision_recall(*self.features, self.config, self.warnings)


@dataclass(frozen=True, slots=True)
class ScoreDefinition:
    """One score: how it is called, shown and computed."""

    key: str  # in records
    title: str  # in tables
    compute: Callable[[Pair], float | None]  # None: too few images, and a warning says so
    digits: int  # after the point, in tables of one training; of several, one fewer
    better: Literal["lower", "higher"]
    needs: tuple[Need, ...] = ()  # without which it is None
    unit: str = ""
    inception: str | None = None  # title on Inception's features; on others, the title and their name. None: one title
    short: str | None = None  # the key of that title in records; None: `key`
    stands: tuple[Page, ...] = ()  # tables that have its column whether or not a row has a value

    def value(self, pair: Pair) -> float | None:
        """The score of a pair; None where something that it needs is not there."""
        return self.compute(pair) if all(pair.has(need) for need in self.needs) else None

    def on(self, features: str) -> str:
        """The title of the score on some features, such as FD-digits."""
        if self.inception is None:
            return self.title
        return self.inception if features == INCEPTION else f"{self.title}-{features}"

    def head(self, titles: Mapping[str, str]) -> str:
        """The head of its column. `titles`: of a record, by `titles_on`; empty where there is no record."""
        title = titles.get(self.short or self.key, self.title)
        return f"{title}, {self.unit}" if self.unit else title


def _fd(pair: Pair) -> float:
    return frechet(pair.found.gaussian, pair.reference.gaussian)


def _inception_score(pair: Pair) -> float:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = pair.found.logits
    assert logits is not None
    splits = min(IS_SPLITS, len(logits) // 2) or 1
    if splits < IS_SPLITS:
        pair.warnings.append(f"IS over {splits} splits instead of {IS_SPLITS}, as there are {len(logits)} images.")
    return float(isc_features_to_metric(logits, splits=splits)["inception_score_mean"])


def _kid(pair: Pair) -> float:
    features, reference = pair.features
    size = min(pair.config.kid_subset_size, len(features), len(reference))
    subsets = 1 if size == len(features) == len(reference) else pair.config.kid_subsets
    return kernel_distance(features, reference, subsets, size)


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


BOTH: tuple[Need, ...] = ("features", "reference features")
MOST: tuple[Page, ...] = ("scores", "compare", "sweep")

SCORES: tuple[ScoreDefinition, ...] = (
    ScoreDefinition("fd", "FD", _fd, 4, "lower", inception="FID"),
    ScoreDefinition(
        "inception_score", "IS", _inception_score, 3, "higher", ("logits",), inception="IS", short="is", stands=MOST
    ),
    ScoreDefinition("kid", "KID", _kid, 5, "lower", BOTH, inception="KID", stands=MOST),
    ScoreDefinition(
        "precision", "precision", lambda pair: pair.precision_recall[0], 3, "higher", BOTH, stands=("scores",)
    ),
    ScoreDefinition("recall", "recall", lambda pair: pair.precision_recall[1], 3, "higher", BOTH, stands=("scores",)),
)
PRIMARY = SCORES[0]


def keys() -> list[str]:
    """Of all scores, as records have them."""
    return [score.key for score in SCORES]


def titles_on(features: str) -> dict[str, str]:
    """The titles that depend on the features, by their keys in records."""
    return {score.short or score.key: score.on(features) for score in SCORES if score.inception is not None}


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one set of images by key; None where one does not apply."""

    images: int
    values: Mapping[str, float | None] = field(metadata=FLAT)
    warnings: tuple[str, ...] = ()


def score(found: FeatureSet, reference: FeatureSet, config: MetricsConfig) -> Scores:
    """All scores of `found` against `reference`, computed in one process."""
    count, dim = found.gaussian.count, len(found.gaussian.mean)
    if count < 2:
        raise SnrkitError(f"{count} image is too few to score; make at least 2, better more than {dim}.")
    if reference.gaussian.count == 1:
        raise SnrkitError("1 image is too few to score against; give a reference of at least 2, better many more.")
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
    pair = Pair(found, reference, config, warnings)
    values = {each.key: each.value(pair) for each in SCORES}  # which may add warnings
    return Scores(count, values, tuple(warnings))


def score_statistics(found: FeatureSet, reference: FeatureSet, config: MetricsConfig) -> Scores:
    """The scores that moments alone allow, of images that are not counted."""
    pair = Pair(found, reference, config, [])
    return Scores(0, {each.key: each.value(pair) for each in SCORES})


@dataclass(frozen=True, slots=True)
class Entry:
    """A score over ranges of seeds."""

    mean: float
    min: float
    max: float
    std: float | None  # None for one range


Summary = Mapping[str, Entry]  # by the key of a score


def summarise(each: Sequence[Scores]) -> dict[str, Entry]:
    """Mean, minimum, maximum and standard deviation over the ranges of every score that one of them has."""
    summary = {}
    for key in keys():
        values = [value for scores in each if (value := scores.values[key]) is not None]
        if values:
            std = statistics.stdev(values) if len(values) > 1 else None
            summary[key] = Entry(statistics.fmean(values), min(values), max(values), std)
    return summary


@dataclass(frozen=True, slots=True)
class Columns:
    """The scores that a table shows beside PRIMARY."""

    standing: tuple[ScoreDefinition, ...]  # whose column is part of the table
    others: tuple[ScoreDefinition, ...]  # of which a row has a value

    @property
    def every(self) -> tuple[ScoreDefinition, ...]:
        """Both, in this order."""
        return self.standing + self.others


def columns(page: Page, rows: Iterable[Mapping[str, object]]) -> Columns:
    """Of a table whose rows have values by the keys of scores."""
    present = {key for row in rows for key, value in row.items() if value is not None}
    beside = [score for score in SCORES if score is not PRIMARY]
    standing = tuple(score for score in beside if page in score.stands)
    return Columns(standing, tuple(score for score in beside if score.key in present and score not in standing))
