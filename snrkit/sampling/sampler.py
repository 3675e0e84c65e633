"""One sampler of an experiment, what sampling needs beside it, and what it costs."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Annotated, Any, Literal, overload

import torch
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import Tensor

from snrkit.base.errors import ConfigError, SnrkitError, shown
from snrkit.base.value import Batch, Label, Place, Seen, Text, Value
from snrkit.diffusion.denoiser import check_readable
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, Target
from snrkit.diffusion.process import Process
from snrkit.sampling.corrections import AnyCorrection
from snrkit.sampling.corrections.guidance import Guidance, of_steps
from snrkit.sampling.grid import AnyGrid, Grid, ImageGrid, Placement, Told
from snrkit.sampling.sample import sample, start
from snrkit.sampling.solvers import AnySolver, Dpmpp2m, Dpmpp3m, Heun, Increments, IpndmV, Unipc
from snrkit.sampling.step import (
    BeliefCorrection,
    Capabilities,
    Correction,
    Fit,
    ForwardStatistics,
    Guides,
    LevelPosterior,
    Named,
    NamedEstimator,
    NamedFit,
    NamedWeights,
    Opens,
    Requires,
    Solver,
    Sources,
    TakesFit,
    no_fit,
)
from snrkit.training.level_samplers import AnyLevels

MOST_IMAGES = 10_000_000  # of a sampler
NUMBER = re.compile(r"[0-9]{1,18}")
LEFT_OUT = ("certificate", "told_spectrum")  # of what is written, where they are None
FEWEST_NOISES = 20  # of which an interval says something
SeedText = Annotated[str, Field(max_length=10_000)]


@dataclass(frozen=True, slots=True)
class Seeds(Sequence[int]):
    """Seeds in order, held as the ranges that they were written as, however many they are."""

    ranges: tuple[range, ...]

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.ranges)

    def __contains__(self, seed: object) -> bool:
        return any(seed in part for part in self.ranges)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        places = range(len(self))[index]
        return [self._at(place) for place in places] if isinstance(places, range) else self._at(places)

    def _at(self, place: int) -> int:
        for part in self.ranges:
            if place < len(part):
                return part[place]
            place -= len(part)
        raise AssertionError("a place within the length lies in a range")

    def shared(self, other: "Seeds") -> int:
        """How many of them are among others."""
        overlaps = (range(max(a.start, b.start), min(a.stop, b.stop)) for a in self.ranges for b in other.ranges)
        return sum(map(len, overlaps))


def parse_seeds(text: str) -> Seeds:
    """The seeds of '0-99,200-299'. ValueError when malformed, repeated, or of more images than a sampler may make."""
    found: list[range] = []
    for part in text.split(","):
        if part.strip().startswith("-"):
            raise ValueError(f"seeds '{shown(text)}' are below 0; seeds begin at 0")
        first, dash, last = part.strip().partition("-")
        if not NUMBER.fullmatch(first) or (dash and not NUMBER.fullmatch(last)):
            raise ValueError(f"seeds '{shown(text)}' are not ranges such as 0-2999 or 0-99,200-299")
        found.append(range(int(first), int(last if dash else first) + 1))
    seeds = Seeds(tuple(part for part in found if part))
    rising = sorted(seeds.ranges, key=lambda part: part.start)
    if any(before.stop > after.start for before, after in pairwise(rising)):
        raise ValueError(f"seeds '{shown(text)}' repeat")
    if (count := sum(part.stop - part.start for part in rising)) > MOST_IMAGES:
        raise ValueError(f"seeds '{shown(text)}' are {count:,} images, and a sampler makes {MOST_IMAGES:,} at most")
    return seeds


class Sampler(Value):
    """A grid, a solver and corrections, as a file or a script names them; `open_with` lays it out.

    Corrections of belief wrap the denoiser in list order, the first innermost; those of state act in list order.
    ConfigError for unknown kinds and options; `open_with` refuses an autoguidance that follows a correction of belief.
    """

    grid: AnyGrid = Field(description="levels that are visited")
    solver: AnySolver = Field(description="rule by which a step goes from one level to the next")
    corrections: tuple[AnyCorrection, ...] = Field(
        default=(),
        max_length=20,
        description="changes of what is predicted, the first innermost, and of states, in list order",
    )
    start: Literal["published", "exact"] = Field(
        default="published", description="exact adds the data's variance to the first state, for controls"
    )
    told_spectrum: Told | None = Field(
        default=None,
        description="whose power spectrum a network with scalars is told of: instance, one drawn for each, class, "
        "or dataset, the mean; default: the one that the grid follows, else the mean",
    )
    certificate: Place | None = Field(
        default=None, description="file of snrkit certify whose recipe this is, with the coefficients of its steps"
    )

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a certificate or a told spectrum where there is none."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if value is not None or key not in LEFT_OUT}

    @model_validator(mode="after")
    def _fits_alone(self) -> "Sampler":
        parts = (self.solver, *self.corrections)
        fitted = [part.kind for part in parts if terms_of(part)]
        others = [c.kind for c in self.corrections if not (terms_of(c) or isinstance(c, Guidance))]
        if fitted and (beside := fitted[1:] + others):
            raise ValueError(
                f"{fitted[0]} is fitted to the flow of the network with its guidance, and {beside[0]} changes the same "
                "steps; drop one of them"
            )
        return self


class SampleConfig(Value):
    """Which images to make, and with which weights."""

    seeds: SeedText = Field(default="0-999", description="ranges of seeds, such as 0-2999 or 0-99,200-299")
    batch: Batch = Field(default=500, description="images that are made at once")
    labels: Label | None = Field(default=None, description="one label for all images; by default uniform over classes")
    average: Text | None = Field(
        default=None, description="ema-<half-life>, or network for the raw weights; default: longest"
    )
    checkpoint: Seen | None = Field(default=None, description="images seen by the checkpoint; default: the newest")
    npz: bool = Field(default=False, description="also write all images into one .npz (arr_0)")

    @field_validator("seeds", mode="before")
    @classmethod
    def _text(cls, seeds: object) -> object:
        return str(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds

    @field_validator("seeds")
    @classmethod
    def _readable(cls, seeds: str) -> str:
        if not parse_seeds(seeds):
            raise ValueError("no seeds given")
        return seeds


class TuneConfig(Value):
    """How `snrkit tune` chooses coefficients."""

    noises: Annotated[int, Field(ge=FEWEST_NOISES, le=100_000)] = Field(
        default=128, description="first states by which flow fits, and as many others by which it is checked"
    )

    seeds: SeedText = Field(
        default="100000-100999",
        description="ranges of seeds of the images and first states that choose; never of those that are scored",
    )
    trials: int = Field(default=40, ge=1, le=100_000, description="number of trials of the method optuna")

    @field_validator("seeds")
    @classmethod
    def _readable(cls, seeds: str) -> str:
        parse_seeds(seeds)
        return seeds


class CompareConfig(Value):
    """What `snrkit compare` sets beside the experiment's own samplers."""

    solvers: tuple[AnySolver, ...] = Field(
        default=(Heun(), Dpmpp2m(), Dpmpp3m(), Unipc(), IpndmV()),
        max_length=20,
        description="solvers that are shown beside the samplers, without corrections, at every NFE",
    )
    bases: dict[Text, Text] = Field(
        default_factory=dict,
        max_length=1000,
        description="rows that are compared with a row of this name; default: without corrections",
    )
    margin: float | None = Field(
        default=None,
        gt=0,
        description="difference of the score that decides below which two rows count as equal, chosen before any image "
        "is made; default: none is shown to be equal",
    )
    timed_images: Batch = Field(default=32, description="images of one timed batch")
    rounds: int = Field(
        default=5, ge=0, le=100_000, description="timed batches of each sampler, interleaved; 0: nothing is timed"
    )


@dataclass(frozen=True, slots=True)
class OpenedSampler:
    """A sampler with its grid laid out and all that it names opened: what `sample` takes.

    n + 1 levels, rising in logsnr, are n steps. A `placement` is a run's: `of_images` then answers the levels, or what
    the network is told, of a batch of images. Nothing is checked here, but by what takes it.
    """

    levels: tuple[Level, ...]  # shape (); where the grid differs from image to image (1,), those that stand for all
    solver: Solver
    corrections: tuple[Correction, ...]
    placement: Placement | None = None  # where something is each image's own

    @property
    def varies(self) -> bool:
        """Whether the levels differ from image to image."""
        return self.placement is not None and self.placement.varies

    @property
    def typical(self) -> tuple[Level, ...]:
        """The levels, of shape ()."""
        return tuple(level.at(0) for level in self.levels)

    def of_images(
        self, seeds: Sequence[int], labels: Tensor | None, own: Tensor | None = None
    ) -> tuple["OpenedSampler", Tensor | None]:
        """(The sampler of the images of `seeds`, the scalars (B, S) that the network is told), as in Placement."""
        if self.placement is None:
            return self, None
        told = self.placement.told(seeds, labels, own)
        return (replace(self, levels=self.placement.levels(seeds, labels, own)) if self.varies else self), told


def first_variance(sampler: Sampler, data: float | None) -> float | None:
    """What `start` is to take for the variance of the data; None for the published start.

    `data` is theirs, which `start: exact` adds. A grid that follows the images begins where the strongest of what they
    are made of is buried, which may be far from pure noise. There the rest holds sigma^2 and hardly more, not the 1 of
    a vp state that begins at n: the state begins at sigma*n in every scaling.
    """
    if sampler.start == "exact":
        assert data is not None
        return data
    return 0.0 if isinstance(sampler.grid, ImageGrid) else None


def open_with(sampler: Sampler, process: Process, sources: Sources) -> OpenedSampler:
    """Lay out the grid and open what the solver and the corrections name. SnrkitError where their order is wrong."""
    sources = _telling(sampler, sources)
    placement = sources.placement(sampler.grid)
    levels = _levels(sampler.grid, process, placement)
    solver, *corrections = (
        _opened(value, sampler, sources, levels) for value in (sampler.solver, *sampler.corrections)
    )
    _check_order([value.kind for value in sampler.corrections], corrections)
    return OpenedSampler(levels, solver, tuple(corrections), placement)


def _telling(sampler: Sampler, sources: Sources) -> Sources:
    """Sources for a network that is told of the spectrum that the sampler names, if it names one."""
    return sources if sampler.told_spectrum is None else sources.telling(sampler.told_spectrum)


def opened_solver(sampler: Sampler, sources: Sources, levels: Sequence[Level]) -> Solver:
    """The solver of a sampler without what is fitted beyond its base, opened for levels of shape ()."""
    plain = bare(sampler)
    solver: Solver = _opened(plain.solver, plain, _telling(plain, sources), levels)
    return solver


def takes_fit(sampler: Sampler) -> bool:
    """Whether it has a solver or correction whose coefficients are fitted."""
    return any(terms_of(value) for value in (sampler.solver, *sampler.corrections))


def bare(sampler: Sampler) -> Sampler:
    """The sampler without corrections, and without what is fitted beyond its base solver."""
    solver = sampler.solver.base if isinstance(sampler.solver, Increments) else sampler.solver
    return sampler.model_copy(update={"corrections": (), "solver": solver, "certificate": None})


def guided_alone(sampler: Sampler) -> Sampler:
    """The sampler with its guidance and no other correction, and without what is fitted beyond its base solver."""
    guidance = tuple(c for c in sampler.corrections if isinstance(c, Guidance))
    return bare(sampler).model_copy(update={"corrections": guidance})


def guidance_of(sampler: Sampler, opened: OpenedSampler) -> tuple[BeliefCorrection, ...]:
    """What guides the network, of an opened sampler on one grid: what belongs to its flow, in the steps it guides."""
    pairs = zip(sampler.corrections, opened.corrections, strict=True)
    return tuple(
        of_steps(value, correction, opened.levels)
        for value, correction in pairs
        if isinstance(value, Guidance) and isinstance(correction, BeliefCorrection)
    )


def terms_of(value: AnySolver | AnyCorrection) -> int:
    """How many fitted coefficients a solver or correction takes at each step."""
    return value.terms if isinstance(value, TakesFit) else 0


def named_fit(sampler: Sampler) -> NamedFit:
    """What names the coefficients of a sampler that takes a fit."""
    terms = max(terms_of(value) for value in (sampler.solver, *sampler.corrections))
    definition = json.dumps(sampler.model_dump(mode="json", exclude={"certificate"}), sort_keys=True)
    return NamedFit(definition, sampler.grid.steps, terms, sampler.certificate)


def _opened(value: AnySolver | AnyCorrection, sampler: Sampler, sources: Sources, levels: Sequence[Level]) -> Any:
    try:
        if isinstance(value, TakesFit) and value.terms:
            return value.with_fit(sources.fit(named_fit(sampler)))
        return value.open(sources, levels) if isinstance(value, Opens) else value
    except ConfigError as error:  # of the sources, which do not know who asks
        raise ConfigError(f"{value.kind}: {error}") from None


def _check_order(kinds: Sequence[str], corrections: Sequence[Correction]) -> None:
    """SnrkitError where what the model says is changed before it is compared with another model's bare answer."""
    changed = None
    for kind, correction in zip(kinds, corrections, strict=True):
        if isinstance(correction, Guides):
            if correction.asks_bare and changed is not None:
                raise SnrkitError(
                    f"{kind} compares the model with a weaker one as it is; list it before {changed}, which changes "
                    "what the model says"
                )
        elif isinstance(correction, BeliefCorrection):
            changed = kind


def named(sampler: Sampler, process: Process, trained: AnyLevels | None = None) -> list[tuple[str, Named]]:
    """(kind of the solver or correction, what it names), in order: what each asks of its sources when it is opened."""
    dummy, found = Dummy(process, trained), list[tuple[str, Named]]()
    levels = _levels(sampler.grid, process, dummy.placement(sampler.grid))
    for value in (sampler.solver, *sampler.corrections):
        before = len(dummy.named)
        _opened(value, sampler, dummy, levels)
        found += [(value.kind, asked) for asked in dummy.named[before:]]
    return found


def _levels(grid: Grid | ImageGrid, process: Process, placement: Placement | None) -> tuple[Level, ...]:
    if not isinstance(grid, ImageGrid):
        return grid.levels(process)
    assert placement is not None
    return placement.typical()


def missing_capabilities(sampler: Sampler, model: Capabilities) -> list[tuple[str, str]]:
    """(the key and kind, why) of a solver and of corrections that cannot act on this model."""
    asked = [("solver", sampler.solver), *((f"corrections.{i}", c) for i, c in enumerate(sampler.corrections))]
    answers = [(f"{key} ({value.kind})", value.missing(model)) for key, value in asked if isinstance(value, Requires)]
    return [(where, why) for where, why in answers if why is not None]


@dataclass(slots=True)
class Dummy:
    """A model that says x0 = 0, counts how often it is asked, and stands in for everything a sampler may name."""

    process: Process
    trained: AnyLevels | None = None
    asked: int = 0
    named: list[Named] = field(default_factory=list)  # what was opened

    def __call__(
        self, x: Tensor, level: Level, *, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        self.asked += 1
        return Prediction(torch.zeros_like(x), x, torch.zeros_like(x))  # with a spread, whether a model has one or not

    def denoiser(self, named: NamedWeights) -> Denoiser:
        """Itself, so that what a guide costs is counted."""
        self.named.append(named)
        return self

    def estimator(self, named: NamedEstimator) -> LevelPosterior:
        """Itself; an estimator is no evaluation of the model."""
        self.named.append(named)
        return self

    def fit(self, named: NamedFit) -> Fit:
        """One that adds nothing."""
        self.named.append(named)
        return no_fit(named.steps, named.terms)

    def gradient(self, x: Tensor, logsnr: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def mean(self, states: Tensor) -> Tensor:
        return torch.zeros(len(states), dtype=torch.float64)

    def placement(self, grid: Grid | ImageGrid) -> Placement | None:
        """One of images that do not exist."""
        return grid.made_up(self.process, self.trained) if isinstance(grid, ImageGrid) else None

    def telling(self, told: Told) -> Sources:
        """Itself."""
        return self

    def forward(self, levels: Sequence[Level]) -> ForwardStatistics:
        ones = torch.ones(len(levels), dtype=torch.float64)
        return ForwardStatistics(ones, ones)


def dry_run(
    sampler: Sampler,
    process: Process,
    target: Target,
    shape: tuple[int, int, int],
    trained: AnyLevels | None = None,
) -> int:
    """The number of network calls per image, counted by running the sampler once on a dummy that says x0 = 0.

    Raises SnrkitError for whatever cannot work: repeated levels, a target that says nothing where the grid starts, a
    correction that is undefined there or on images of this shape (C, H, W). `trained`: the levels of the training.
    """
    dummy = Dummy(process, trained)
    ready = open_with(sampler, process, dummy)
    check_readable(ready.levels[0], target)
    x = start(process, torch.zeros(1, *shape), ready.levels[0])
    cond = Cond(labels=torch.zeros(1, dtype=torch.int64))
    steps = sample(
        dummy,
        ready.solver,
        ready.levels,
        x,
        corrections=ready.corrections,
        noise=torch.zeros_like,
        cond=cond,
    )
    for _ in steps:
        pass
    return dummy.asked
