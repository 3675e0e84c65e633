"""Certificates: what was found out about one sampler of one model, and the recipe that follows."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from snrkit.base.records import read_record, to_json
from snrkit.data.dataset import fingerprint
from snrkit.experiment.fits import FitOf, StoredFit, check_fit
from snrkit.fitting.guard import Guard
from snrkit.metrics.paired import Difference, Verdict
from snrkit.sampling.sampler import Sampler
from snrkit.sampling.step import Fit
from snrkit.shift.bootstrap import Number

AS_IT_IS = "as-it-is"  # the candidate that is the sampler itself
Advice = Literal["use the recipe", "leave it as it is"]


@dataclass(frozen=True, slots=True)
class TriedCandidate:
    """One that was tried: its sampler with coefficients, its steps' fit, and how near it comes where one is chosen."""

    of: FitOf  # what decides it: weights, and the sampler that it is to replace
    asked: str  # fingerprint of what was to be made, and of the seeds it was fitted and shown on
    name: str
    definition: Mapping[str, Any]
    rows: tuple[tuple[float, ...], ...] | None  # (steps, terms), of steps that were fitted
    distance: Number | None  # rms to the flow; None where it could not be tried
    why: str  # it could not

    @property
    def nearness(self) -> float:
        """The distance to the flow; infinite where there is none, as of states that are not finite."""
        value = math.nan if self.distance is None else self.distance.value
        return math.inf if math.isnan(value) else value


@dataclass(frozen=True, slots=True)
class ShiftSplit:
    """The mean norm gap of a sampler's states less nothing, its null, and how it splits; nats."""

    norm_gap: Number
    null: Number
    network: Number
    solver: Number
    warning: str  # where the network hardly sees the size of its states, so that the norm gap says little


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """The score that decides, of the sampler and of the winner, over ranges of equal fresh seeds."""

    key: str
    title: str
    base: float
    winner: float
    difference: Difference
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Recipe:
    """A sampler, and the fit that its steps take; None where they take none."""

    definition: Mapping[str, Any]
    of: FitOf  # the same model, and this sampler
    fit: StoredFit | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """Everything that snrkit certify found of one sampler."""

    experiment: str
    sampler: str
    advice: Advice
    sentence: str
    nfe: int
    of: FitOf  # the weights, images and labels that it is about
    network: str  # checksum of the values of its parameters, by which pipelines are told
    logsnr: tuple[float, ...]  # of the levels of the recipe but for the clean one, NaN for pure noise
    rule: str  # written before anything was confirmed
    rounding: float  # rms by which rounding to 8 bits moves an image; 0 where states are no pixels
    winner: str
    recipe: Recipe
    guard: Guard  # of the winner beside the sampler as it is, on first states on which none was chosen
    score: ScoreChange | None  # None where the winner is the sampler itself
    shift: ShiftSplit
    candidates: tuple[TriedCandidate, ...]
    not_tried: tuple[str, ...]  # as time was up
    noises: int  # first states: fitted on, chosen on, and confirmed on, as many each
    tuning_seeds: str
    scored_seeds: str
    command: str  # which repeats it
    made_with: Mapping[str, Any]
    confirmed: int = 1  # winners that these first states and seeds were asked about, with this one
    warnings: tuple[str, ...] = ()  # what to know of the network before any of it is believed

    def is_of(self, sampler: Sampler) -> bool:
        """Whether it is about a sampler as it is defined now: its first candidate is the sampler as it was."""
        return bool(self.candidates) and self.candidates[0].definition == sampler.model_dump(mode="json")


def certified_fit(path: Path, wanted: FitOf) -> Fit | None:
    """The coefficients of a recipe, None where it takes none. RunError: of other weights, or another sampler."""
    recipe = read_record(Certificate, path).recipe
    check_fit(path, recipe.of, wanted, "certify this one: snrkit certify")
    return None if recipe.fit is None else recipe.fit.fit


def certified_fact(path: Path) -> str:
    """What the coefficients of a recipe are, as manifests keep it."""
    if not path.exists():
        return "absent"
    return fingerprint(json.dumps(to_json(read_record(Certificate, path).recipe), sort_keys=True))
