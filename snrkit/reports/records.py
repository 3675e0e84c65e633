"""What compare, sweep, tune, check, audit and data pack find, as the files and pages that are made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from snrkit.base.records import FLAT
from snrkit.fitting.coefficients import CurvePoint
from snrkit.fitting.guard import Guard
from snrkit.metrics.paired import Difference, Verdict, holm, verdict
from snrkit.metrics.scores import PRIMARY, Entry, ScoreDefinition, Scores
from snrkit.shift.audit import PairsReading
from snrkit.shift.bootstrap import Number
from snrkit.shift.telling import Walked


@dataclass(frozen=True, slots=True)
class WithNull:
    """A mean reading of a shift, beside its null."""

    reading: Number = field(metadata=FLAT)
    null: Number


@dataclass(frozen=True, slots=True)
class SizeChange:
    """Root mean squares of a shift in a row and in its base, and the difference of the mean squares."""

    row: float
    base: float
    mean_square: Difference
    verdict: Literal["smaller", "larger", "no difference shown"]


def _said(differences: Mapping[str, Difference], score: ScoreDefinition, biased: Sequence[str]) -> Verdict | None:
    found = differences.get(score.key)
    return None if found is None else verdict(found, score.better, biased=score.key in biased)


@dataclass(frozen=True, slots=True)
class Beside:
    """A row of a comparison beside its base."""

    overhead: float | None  # of time, 0 for none; None where nothing was timed
    difference: Mapping[str, Difference]  # over ranges of equal seeds, by the key of a score
    verdict: Verdict  # on the score that decides
    shift_change: Mapping[str, SizeChange | None]  # None where levels differ or nothing can be read
    biased: tuple[str, ...] = ()  # keys of scores that too few images shift

    def said(self, score: ScoreDefinition) -> Verdict | None:
        """What the difference of a score says, without a margin; None where there is none."""
        return _said(self.difference, score, self.biased)


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One sampler of a comparison."""

    name: str
    nfe: int
    base: str | None
    definition: Mapping[str, Any]
    summary: Mapping[str, Entry]
    ranges: tuple[Scores, ...]
    seconds_per_image: float | None  # None where nothing was timed
    mean_norm_gap: WithNull
    mean_log_variance_ratio: WithNull
    mean_nearest: WithNull
    beside: Beside | None = field(metadata=FLAT)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `snrkit compare` found: rows by NFE, then in the order of the file."""

    rows: tuple[ComparisonRow, ...]
    names: Mapping[str, str]
    features: str
    reference: str
    images_a_range: int
    ranges: int
    seeds: str
    checkpoint_images: int
    weights: str
    warnings: tuple[str, ...]
    confidence: float
    timed_images: int
    made_with: Mapping[str, Any]
    decided_by: str = PRIMARY.key  # the key of the score that metrics.decide names
    margin: float | None = None  # within which rows count as equal

    @property
    def differences(self) -> dict[str, Difference]:
        """Of the score that decides, less the base's, by the name of each row that has one of enough images."""
        asked = (row for row in self.rows if row.beside is not None and row.beside.verdict != "too few images")
        found = {row.name: row.beside.difference for row in asked if row.beside is not None}
        return {name: each[self.decided_by] for name, each in found.items() if self.decided_by in each}

    @property
    def together(self) -> str:
        """Which rows still differ from their bases where all are asked at once; nothing where there is one row."""
        asked = self.differences
        if len(asked) < 2 or self.ranges < 2:
            return ""
        sure = ", ".join(holm(asked, self.ranges)) or "none"
        return f"With Holm's correction for all {len(asked)} rows, these still differ: {sure}."


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """A score over the seeds of training, in their order."""

    mean: float
    min: float
    max: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SweepArm:
    """One arm and sampler of a sweep."""

    seeds: tuple[int, ...]
    nfe: int
    weights: str
    scores: Mapping[str, OverSeeds] = field(metadata=FLAT)
    less_first: Mapping[str, Difference] | None  # on equal seeds, by the key of a score; None for the first arm
    power: tuple[float, ...]  # by ring, over the data's
    brightness: float  # its spread, over the data's
    skipped: int
    grad_norm: tuple[float | None, ...]  # by seed
    clipped_share: tuple[float | None, ...]
    biased: tuple[str, ...] = ()  # keys of scores that too few images shift, here or in the first arm

    def said(self, score: ScoreDefinition) -> Verdict | None:
        """What the difference of a score from the first arm says; None where there is none."""
        return _said(self.less_first or {}, score, self.biased)


@dataclass(frozen=True, slots=True)
class SweepTable:
    """What `snrkit sweep` found: every arm and sampler over seeds, beside the first arm."""

    names: Mapping[str, str]  # empty where nothing is made yet
    seeds: tuple[int, ...]
    reference: str  # the first arm
    failed: Mapping[str, str]  # why, by arm and seed
    arms: Mapping[str, SweepArm]
    settings: Mapping[str, tuple[str, ...]]  # of each arm
    everywhere: tuple[str, ...]
    decided_by: str = PRIMARY.key  # the key of the score that metrics.decide names


@dataclass(frozen=True, slots=True)
class Swept:
    """The table of a sweep, and where its page lies."""

    table: SweepTable = field(metadata=FLAT)
    written: str


@dataclass(frozen=True, slots=True)
class FlowFound:
    """The coefficients that bring a sampler nearest to the network's flow, in the order of the parameters."""

    values: tuple[Number, ...]
    curves: tuple[tuple[CurvePoint, ...], ...]
    flat: bool  # whether no value was shown to be nearer than neutral, on the first states that were fitted on
    guard: Guard  # on others
    noises: int  # first states of either
    evaluations: int  # of the denoiser for each first state, of the flow; guidance asks the network more often
    of: str = ""  # fingerprint of all that this depends on

    def shown(self, place: int) -> str:
        """One coefficient with its interval, and whether it is used."""
        number = self.values[place]
        why = "" if self.guard.helps else ", flat: not used" if self.flat else ", not used"
        return f"{number.value:.4g} [{number.low:.4g}, {number.high:.4g}]{why}"


@dataclass(frozen=True, slots=True)
class TunedValues:
    """The coefficients that one method chose, in the order of the parameters."""

    values: tuple[float, ...]
    fd_on_tuning_seeds: float | None
    gap_before_and_after: tuple[float, ...] | None  # root mean squares, nats
    seeds: str
    checkpoint_images: int
    at_the_end_of_its_range: tuple[str, ...]
    flow: FlowFound | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """What `snrkit tune` found for one sampler, by method."""

    sampler: str
    parameters: tuple[str, ...]
    seeds: str
    chosen: str  # the method that was last
    checkpoint_images: int
    weights: str
    of: Mapping[str, Any]  # the sampler with these parameters neutral
    corrections: tuple[Mapping[str, Any], ...]  # with those chosen
    found: Mapping[str, TunedValues]


@dataclass(frozen=True, slots=True)
class TunedNow:
    """What the last method chose, and the YAML that holds it."""

    tuned: Tuned = field(metadata=FLAT)
    values: tuple[float, ...]
    yaml: str


@dataclass(frozen=True, slots=True)
class FitMade:
    """Coefficients by step that were fitted for a sampler, and the file that holds them."""

    written: str
    nfe: int
    guard: Guard
    noises: int


@dataclass(frozen=True, slots=True)
class Designed:
    """A grid with steps fitted on it, that snrkit design made."""

    sampler: str
    written: str
    grid: Mapping[str, Any]
    own_grid: float  # rms distance to the flow of steps fitted on the sampler's own grid, where grids were chosen
    distance: float  # and on this one
    guard: Guard
    by: str = "fitted"  # or gits, oss: a grid for the sampler's own steps, and both distances are of these
    seeds: str = ""  # that chose a published grid


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one file, and what to do, or what `--repair` did."""

    path: str
    what: str
    remedy: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What `snrkit check` found."""

    run: str
    verified: int  # files whose content carries a checksum
    others: int  # files that only people read
    aside: int  # files in RUN/damaged
    findings: Sequence[Finding]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong any more."""
        return all(finding.repaired for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Exported:
    """Weights that were written for others: where, in which format, and of which average and count of images."""

    path: str
    format: str
    weights: str
    images: int
    pipeline: bool  # whether diffusers opens it as a whole pipeline


@dataclass(frozen=True, slots=True)
class Pushed:
    """A run that was uploaded: where, in which commit, and which weights of how many images."""

    place: str
    commit: str
    weights: str
    images: int


@dataclass(frozen=True, slots=True)
class Initialised:
    """An experiment's file that was written."""

    path: str
    what: str
    before: str  # the command to run first; empty where there is none
    then: str  # the command to run with it


@dataclass(frozen=True, slots=True)
class Packing:
    """What was packed: where, how many images, of which shape and classes, and what was changed of how many."""

    path: str
    images: int
    size: int
    channels: int
    classes: int
    changes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file of latents that was made."""

    path: str
    images: int
    shape: tuple[int, ...]  # of the latents of one
    numbers: str
    posterior: bool  # whether they have a standard deviation
    sigma_data: float  # of all latents, scaled, over all draws
    data: Mapping[str, Any]  # of an experiment that trains on them


@dataclass(frozen=True, slots=True)
class Audited:
    """What `snrkit audit` found: what samplers or a scheduler tell, and training pairs."""

    what: str
    tolerance: float  # nats
    walks: tuple[Walked, ...]
    training: Walked | None  # pairs of a scheduler of diffusers
    pairs: PairsReading | None  # pairs of a training of ours
    beyond: tuple[str, ...]  # what lies beyond the tolerance, a sentence each
