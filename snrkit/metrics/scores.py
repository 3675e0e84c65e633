"""The scores of images against a reference: one table, read by whatever computes, summarises or shows them.

    SCORES     one record a score: FD/FID and its floor, IS, KID, precision, recall; if asked for, FD-infinity and SW2^2
    score      computes them for one set of images
    summarise  mean, spread and standard error of each over ranges of seeds
    columns    which of them a table shows

A further score is a further record in SCORES, and if it is computed only where it is asked for, a name in config.py.
The one that metrics.decide names, PRIMARY by default, picks checkpoints; verdicts are about it, and every table begins
with it. The coefficients of `tune --by fd` are chosen by PRIMARY whatever decides.

This is also the one door to torch-fidelity's metrics, whose known traps are closed here: too few images for its splits
and subsets, unknown keyword arguments, caches by name. IS splits the images after torch-fidelity's own fixed shuffle,
as it does by default.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.records import FLAT
from snrkit.metrics.config import MetricsConfig
from snrkit.metrics.estimate import NORMAL, Error, Estimate, pooled
from snrkit.metrics.extrapolation import IMAGES_A_FEATURE, count_parts, extrapolated, frechet_infinity, shuffled
from snrkit.metrics.features import KEPT, FeatureSet
from snrkit.metrics.floor import frechet_floor
from snrkit.metrics.kernel import kernel_estimate
from snrkit.metrics.sliced import PARTS, SMALLEST, sliced_distance
from snrkit.metrics.statistics import frechet, too_few

IS_SPLITS = 10
INCEPTION = "inception"  # the features whose distance is called FID
PACKETS = "packets"  # those whose distance is called FWD

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

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the mean of the features: (dim,), or (packets, d)."""
        return tuple(self.found.gaussian.mean.shape)

    @cached_property
    def precision_recall(self) -> tuple[float | None, float | None]:
        """Both at once, since they share their distances."""
        return _precision_recall(*self.features, self.config, self.warnings)


@dataclass(frozen=True, slots=True)
class ScoreDefinition:
    """One score: how it is called, shown and computed."""

    key: str  # in records
    title: str  # in tables
    compute: Callable[[Pair], float | Estimate | None]  # None: too few images, and a warning says so
    digits: int  # after the point, in tables of one training; of several, one fewer
    better: Literal["lower", "higher"]
    needs: tuple[Need, ...] = ()  # without which it is None
    unit: str = ""
    inception: str | None = None  # title on Inception's features; on others, the title and their name. None: one title
    packets: str | None = None  # title on wavelet packets, if it is another than the title and their name
    short: str | None = None  # the key of that title in records; None: `key`
    stands: tuple[Page, ...] = ()  # tables that have its column whether or not a row has a value
    asked: str | None = None  # what metrics.more or metrics.decide must name for it to be computed; None: nothing
    interval: bool = False  # whether it has a standard error
    of_reference: bool = False  # of the reference alone, so that no two rows differ by it

    def value(self, pair: Pair) -> float | Estimate | None:
        """The score of a pair; None where it is not asked for, or something that it needs is not there."""
        wanted = self.asked is None or self.asked in (*pair.config.more, pair.config.decide)
        return self.compute(pair) if wanted and all(pair.has(need) for need in self.needs) else None

    def on(self, features: str) -> str:
        """The title of the score on some features, such as FD-digits."""
        if self.inception is None:
            return self.title
        if features == PACKETS and self.packets is not None:
            return self.packets
        return self.inception if features == INCEPTION else f"{self.title}-{features}"

    def head(self, titles: Mapping[str, str]) -> str:
        """The head of its column. `titles`: of a record, by `titles_on`; empty where there is no record."""
        title = titles.get(self.short or self.key, self.title)
        return f"{title}, {self.unit}" if self.unit else title

    def lead(self, titles: Mapping[str, str]) -> str:
        """The head of its column where it comes first."""
        return f"{self.head(titles)} {self.brackets}"

    @property
    def brackets(self) -> str:
        """What stands behind its mean where it comes first."""
        return "[95 %]" if self.interval else "(min, max)"


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


def _kid(pair: Pair) -> Estimate:
    features, reference = pair.features
    size = min(pair.config.kid_subset_size, len(features), len(reference))
    subsets = 1 if size == len(features) == len(reference) else pair.config.kid_subsets
    return kernel_estimate(features, reference, subsets, size)


def _fd_infinity(pair: Pair) -> Estimate | None:
    features, dim = pair.found.features, pair.found.gaussian.dim
    assert features is not None
    reference = pair.reference.features
    if reference is None:
        pair.warnings.append("FD∞ against statistics alone keeps the bias of the reference's own count.")
    found = frechet_infinity(features, pair.reference.gaussian if reference is None else reference, pair.shape)
    if found is None:
        pair.warnings.append(
            f"FD∞ needs {2 * IMAGES_A_FEATURE * dim} images on either side, for {dim} features; there are "
            f"{len(features)}{'' if reference is None else f' and {len(reference)}'}."
        )
    return found


def _fd_floor(pair: Pair) -> float | None:
    features, images, known = pair.reference.features, pair.found.gaussian.count, pair.reference.floors
    assert features is not None
    if images not in known:
        known[images] = frechet_floor(features, pair.shape, images, pair.reference.gaussian.count)
    return known[images]


def _sliced(pair: Pair) -> float | None:
    rows = [shuffled(features) for features in pair.features]
    if count_parts(len(rows[0]), len(rows[1]), SMALLEST) < PARTS:
        pair.warnings.append(f"SW2^2 needs {PARTS * SMALLEST} images on either side.")
        return None
    return extrapolated(sliced_distance, rows[0], rows[1], PARTS)


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
    ScoreDefinition("fd", "FD", _fd, 4, "lower", inception="FID", packets="FWD"),
    ScoreDefinition(
        "fd_floor", "floor of FD", _fd_floor, 4, "lower", ("reference features",), inception="floor of FID",
        packets="floor of FWD", stands=("scores", "checkpoints", "compare"), of_reference=True,
    ),
    ScoreDefinition(
        "inception_score", "IS", _inception_score, 3, "higher", ("logits",), inception="IS", short="is", stands=MOST
    ),
    ScoreDefinition("kid", "KID", _kid, 5, "lower", BOTH, inception="KID", stands=MOST, interval=True),
    ScoreDefinition(
        "precision", "precision", lambda pair: pair.precision_recall[0], 3, "higher", BOTH, stands=("scores",)
    ),
    ScoreDefinition("recall", "recall", lambda pair: pair.precision_recall[1], 3, "higher", BOTH, stands=("scores",)),
    ScoreDefinition(
        "fd_infinity", "FD∞", _fd_infinity, 4, "lower", ("features",), inception="FID∞",
        packets="FWD∞", asked="fd_infinity", interval=True,
    ),
    ScoreDefinition("sliced", "SW2^2", _sliced, 5, "lower", BOTH, inception="SW2^2", asked="sliced"),
)  # fmt: skip
PRIMARY = SCORES[0]


def by_key(key: str) -> ScoreDefinition:
    """The score that records have under a key."""
    return next(score for score in SCORES if score.key == key)


def keys() -> list[str]:
    """Of all scores, as records have them."""
    return [score.key for score in SCORES]


def differing() -> list[str]:
    """Of the scores by which samplers differ."""
    return [score.key for score in SCORES if not score.of_reference]


def titles_on(features: str) -> dict[str, str]:
    """The titles that depend on the features, by their keys in records."""
    return {score.short or score.key: score.on(features) for score in SCORES if score.inception is not None}


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one set of images by key; None where one does not apply. `errors`: of those that have one."""

    images: int
    values: Mapping[str, float | None] = field(metadata=FLAT)
    warnings: tuple[str, ...] = ()
    errors: Mapping[str, Error] = field(default_factory=dict)
    biased: tuple[str, ...] = ()  # keys of scores that so few images shift, so that they decide nothing


def score(found: FeatureSet, reference: FeatureSet, config: MetricsConfig) -> Scores:
    """The scores of `found` against `reference`, computed in one process. SnrkitError where none decides."""
    count, dim = found.gaussian.count, found.gaussian.dim
    if count < 2:
        raise SnrkitError(f"{count} image is too few to score; make at least 2, better more than {dim}.")
    if reference.gaussian.count == 1:
        raise SnrkitError("1 image is too few to score against; give a reference of at least 2, better many more.")
    if reference.gaussian.mean.shape != found.gaussian.mean.shape:
        raise SnrkitError(f"the reference has {reference.gaussian.dim} features and the images {dim}; they differ.")
    warnings: list[str] = []
    if 0 < reference.gaussian.count <= dim:
        warnings.append(
            f"the reference's {reference.gaussian.count} images are too few for {dim} features: its covariance is "
            "singular; trust KID."
        )
    if count <= dim:
        warnings.append(
            f"{count} images of a range are too few for {dim} features: the covariance is singular and the distance "
            f"biased; use more than {dim}, or trust KID."
        )
    pair = Pair(found, reference, config, warnings)
    computed = _computed(pair)  # which may add warnings
    if computed.values.get(config.decide) is None:
        why = " ".join(warnings) or "the reference has statistics alone."
        raise SnrkitError(
            f"metrics.decide: {config.decide} cannot be had of {count} images: {why} Let another score decide."
        )
    biased = (PRIMARY.key,) if too_few(count, reference.gaussian) else ()
    return replace(computed, images=count, warnings=tuple(warnings), biased=biased)


def _computed(pair: Pair) -> Scores:
    found = {each.key: each.value(pair) for each in SCORES}
    values = {key: each.value if isinstance(each, Estimate) else each for key, each in found.items()}
    return Scores(0, values, (), {key: each.error for key, each in found.items() if isinstance(each, Estimate)})


def score_statistics(found: FeatureSet, reference: FeatureSet, config: MetricsConfig) -> Scores:
    """The scores that moments alone allow, of images that are not counted."""
    return _computed(Pair(found, reference, config, []))


@dataclass(frozen=True, slots=True)
class Entry:
    """A score over ranges of seeds."""

    mean: float
    min: float
    max: float
    std: float | None  # None for one range
    error: Error | None = None  # of the mean; None for scores that have none

    @property
    def interval(self) -> tuple[float, float] | None:
        """The central 95 % that a normal law round the mean has; None without a standard error."""
        if self.error is None:
            return None
        return self.mean - NORMAL * self.error.whole, self.mean + NORMAL * self.error.whole


Summary = Mapping[str, Entry]  # by the key of a score


def shifted(each: Sequence[Scores]) -> tuple[str, ...]:
    """Keys of scores that are shifted in any range, as its images are too few."""
    return tuple(sorted({key for part in each for key in part.biased}))


def summarise(each: Sequence[Scores]) -> dict[str, Entry]:
    """Mean, minimum, maximum, deviation and standard error over the ranges of every score that one of them has."""
    summary = {}
    for key in keys():
        values = [value for scores in each if (value := scores.values.get(key)) is not None]
        errors = [scores.errors[key] for scores in each if key in scores.errors]
        if values:
            std = statistics.stdev(values) if len(values) > 1 else None
            error = pooled(errors) if len(errors) == len(values) else None
            summary[key] = Entry(statistics.fmean(values), min(values), max(values), std, error)
    return summary


@dataclass(frozen=True, slots=True)
class Columns:
    """The scores that a table shows beside the first."""

    standing: tuple[ScoreDefinition, ...]  # whose column is part of the table
    others: tuple[ScoreDefinition, ...]  # of which a row has a value

    @property
    def every(self) -> tuple[ScoreDefinition, ...]:
        """Both, in this order."""
        return self.standing + self.others


def columns(page: Page, rows: Iterable[Mapping[str, object]], first: ScoreDefinition = PRIMARY) -> Columns:
    """Of a table that `first` leads and whose rows have values by the keys of scores."""
    present = {key for row in rows for key, value in row.items() if value is not None}
    beside = [score for score in SCORES if score.key != first.key]
    standing = tuple(score for score in beside if page in score.stands)
    return Columns(standing, tuple(score for score in beside if score.key in present and score not in standing))
