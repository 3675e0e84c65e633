"""What eval-fid finds, as the files that it writes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from snrkit.base.records import FLAT
from snrkit.metrics.memorisation import Memorisation
from snrkit.metrics.scores import PRIMARY, Entry, Scores, shifted


@dataclass(frozen=True, slots=True)
class SamplerScores:
    """The scores of one sampler's images, and what they depend on."""

    numerics: int
    sampler: str
    definition: Mapping[str, Any]
    nfe: int
    checkpoint_images: int
    weights: str
    seeds: str
    features: str
    features_note: str
    features_key: str
    names: Mapping[str, str]  # titles that depend on the features
    reference: str
    ranges: tuple[Scores, ...]
    summary: Mapping[str, Entry]  # over the ranges, by the key of a score
    memorisation: Memorisation | None
    made_with: Mapping[str, Any]
    decided_by: str = PRIMARY.key  # the key of the score that metrics.decide names

    def __post_init__(self) -> None:
        if not self.ranges:
            raise ValueError("has no ranges")

    @property
    def biased(self) -> set[str]:
        """Keys of scores that are shifted in any range, as its images are too few."""
        return set(shifted(self.ranges))

    @property
    def warnings(self) -> set[str]:
        """Of all ranges."""
        return {warning for part in self.ranges for warning in part.warnings}


@dataclass(frozen=True, slots=True)
class ScoreCurve:
    """The scores of one sampler at several checkpoints."""

    sampler: str
    points: tuple[SamplerScores, ...]  # oldest first
    selected_images: int  # of the checkpoint that is best
    selected_by: str  # the key of a score


@dataclass(frozen=True, slots=True)
class PairScores:
    """The scores of one set of images against another; of statistics alone there are no features."""

    first: str
    second: str
    features: str | None
    features_note: str | None
    features_key: str | None
    names: Mapping[str, str]
    scores: Scores = field(metadata=FLAT)
    made_with: Mapping[str, Any] | None = None
