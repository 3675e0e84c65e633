"""One step of a sampler, and the protocols of whatever takes part in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.base.value import Value
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Denoiser, Prediction
from snrkit.diffusion.process import Process
from snrkit.sampling.grid import Grid, ImageGrid, Placement, Told


@dataclass(frozen=True, slots=True)
class Position:
    """Where the sampler stands: step `index` of `grid` goes from level `here` to level `there`."""

    index: int
    grid: tuple[Level, ...]
    here: Level
    there: Level

    @property
    def nominal(self) -> Level:
        """The grid's level of this step: `here` unless a correction of level moved it."""
        return self.grid[self.index]

    def at(self, rows: Tensor) -> "Position":
        """That of some images, of a grid that differs from image to image."""
        grid = tuple(level.at(rows) for level in self.grid)
        return Position(self.index, grid, self.here.at(rows), self.there.at(rows))

    @property
    def t(self) -> float:
        """From 1 at the grid's first level evenly to 0 at its last before the clean one."""
        last = len(self.grid) - 2
        return (last - self.index) / last if last else 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """One answer of the denoiser, read at `level`."""

    level: Level
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Step:
    """What happened in one step: from `x` through `calls` to `x_next`. Probes read calls[0], DCW calls[-1]."""

    position: Position
    x: Tensor
    calls: tuple[Call, ...]
    x_next: Tensor


Noise = Callable[[Tensor], Tensor]
"""Fresh standard normal noise shaped as its argument (B, *); each image has a stream of its own."""

Memory = Any
"""What a solver carries from step to step; None at the first. Explicit, so that a solver itself has no state."""


class Solver(Protocol):
    """A rule that makes one step of dx = x0 d(alpha) + eps d(sigma)."""

    @property
    def order(self) -> int:
        """The order of convergence: a promise that a test measures."""

    @property
    def renews(self) -> float | None:
        """The share of DDPM's posterior noise that every step renews, which decides how a small error decays.

        0: none, the step is deterministic; 1: all (Ho et al. 2020); None: a part, or one that changes. A test holds
        every solver to it.
        """

    def step(
        self, denoise: Denoiser, x: Tensor, position: Position, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """(x_next, the answers it used in order, memory for the next step)."""


class Deterministic(Value):
    """What solvers that draw no noise share."""

    @property
    def renews(self) -> float:
        """0, as every step is a function of its state."""
        return 0.0


@runtime_checkable
class BeliefCorrection(Protocol):
    """Changes what the model says: epsilon scaling, guidance, clipping. Wraps the denoiser anew for each step."""

    def wrap(self, denoise: Denoiser, position: Position) -> Denoiser:
        """The denoiser that the solver is to ask in this step."""


@runtime_checkable
class Guides(Protocol):
    """Guidance: a belief correction that adds a term to what the model says, on the same base as those beside it."""

    @property
    def asks_bare(self) -> bool:
        """Whether it compares with another model, asked as it is, so that nothing but such terms may come before it."""


@runtime_checkable
class LevelCorrection(Protocol):
    """Changes where the state is held to be: time shift."""

    def move(self, x: Tensor, position: Position, process: Process) -> Position:
        """The position from which the step is to be made."""


@runtime_checkable
class StateCorrection(Protocol):
    """Changes where the step went: DCW."""

    def after(self, step: Step) -> Tensor:
        """The corrected x_next."""


Correction = BeliefCorrection | LevelCorrection | StateCorrection
"""What may stand in a list of corrections: whatever has one of the hooks `wrap`, `move` and `after`."""


@dataclass(frozen=True, slots=True)
class Range:
    """Where a coefficient is searched: its neutral value, the ends, and the steps of a coarse and a fine sweep."""

    neutral: float
    low: float
    high: float
    coarse: float
    fine: float
    whole: bool = False  # multiples of `fine` only

    def wider(self, times: float) -> "Range":
        """The same, with ends so many times as far from neutral."""
        low, high = (self.neutral + times * (end - self.neutral) for end in (self.low, self.high))
        return replace(self, low=low, high=high)

    def allowed(self, value: float) -> float:
        """The nearest value that a correction takes."""
        kept = min(max(value, self.low), self.high)
        return round(kept / self.fine) * self.fine if self.whole else kept


@runtime_checkable
class Tunable(Protocol):
    """A correction with coefficients that `snrkit tune` may choose."""

    @property
    def tunable(self) -> Mapping[str, Range]:
        """Where each is searched, by the name of its field."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a trained model can be asked."""

    labels: bool  # it was trained with labels
    unlabelled: bool  # and without them, by label dropout
    untold: bool  # it was trained without the level, by noise dropout
    attends: bool = False  # its attention can be perturbed
    spread: bool = False  # it says the variance of ancestral steps


@runtime_checkable
class Requires(Protocol):
    """A solver or correction that not every model allows."""

    def missing(self, model: Capabilities) -> str | None:
        """Why it cannot act on this model and what to do; None if it can."""


@dataclass(frozen=True, slots=True)
class NamedWeights:
    """Weights that a solver or correction names: of a run, at a checkpoint, of an average."""

    run: Path | None = None  # None: that of the sampler itself
    checkpoint: int | None = None  # images seen; None: the newest
    average: str | None = None  # None: what the sampler itself uses


@dataclass(frozen=True, slots=True)
class NamedEstimator:
    """The run's estimator of levels, named by a solver or correction."""


@dataclass(frozen=True, slots=True)
class NamedFit:
    """The coefficients that were fitted for a sampler, by its definition as JSON."""

    sampler: str
    steps: int
    terms: int  # of each step
    certificate: Path | None = None  # where they stand; None: in the run


Named = NamedWeights | NamedEstimator | NamedFit


class LevelPosterior(Protocol):
    """An estimator of the level of a state, q(logsnr | x)."""

    def gradient(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """The gradient (B, *) in the states x (B, *) of ln q(logsnr | x), at logsnr () or (B,)."""

    def mean(self, states: Tensor) -> Tensor:
        """E_q[logsnr] (B,), float64 on the CPU, of states (B, *)."""


@dataclass(frozen=True, slots=True)
class ForwardStatistics:
    """What a model says on real images noised to L levels: float64 (L,), in the order of the levels."""

    eps_square: Tensor  # E|eps_hat|^2 per dimension
    x0_variance: Tensor  # variance of x0_hat over the dimensions of one image, mean over images


class Fit(Protocol):
    """The coefficients of the terms that a solver or a correction adds to its steps."""

    def of(self, index: int, x_next: Tensor, terms: Sequence[Tensor]) -> Sequence[float | Tensor]:
        """Those of `terms` (B, *) in step `index`, which ends at x_next (B, *) without them."""


@dataclass(frozen=True, slots=True)
class GivenFit:
    """Coefficients by step and term. In the first steps a history is shorter: the last terms are missing."""

    rows: tuple[tuple[float, ...], ...]

    def of(self, index: int, x_next: Tensor, terms: Sequence[Tensor]) -> Sequence[float]:
        """As they were given."""
        return self.rows[index][: len(terms)]


def no_fit(steps: int, terms: int) -> GivenFit:
    """Coefficients of 0, which leave every step as it is."""
    return GivenFit(((0.0,) * terms,) * steps)


def add_terms(x_next: Tensor, terms: Sequence[Tensor], fit: Fit, index: int) -> Tensor:
    """x_next + sum_i c_i terms_i, all (B, *); bit for bit x_next where all c are 0.

    A coefficient that is a tensor (), of which a gradient is asked, is multiplied whatever it is.
    """
    for coefficient, term in zip(fit.of(index, x_next, terms), terms, strict=True):
        if coefficient or isinstance(coefficient, Tensor):
            x_next = x_next + coefficient * term
    return x_next


@runtime_checkable
class TakesFit(Protocol):
    """A solver or correction whose coefficients, some for each step, are fitted to the network's flow."""

    @property
    def terms(self) -> int:
        """How many coefficients a step takes; 0 where it takes none as it is configured."""

    def with_fit(self, fit: Fit) -> Any:
        """The solver or correction with its coefficients."""


class Sources(Protocol):
    """The only door to what a sampler names: weights, estimators, fits, statistics of forward samples.

    What a solver or correction asks of it while it is opened is what its images depend on: `sampler.named` notes it,
    and manifests, checks and messages follow from that.
    """

    def denoiser(self, named: NamedWeights) -> Denoiser:
        """The model of these weights."""

    def estimator(self, named: NamedEstimator) -> LevelPosterior:
        """The run's estimator of levels (snrkit fit-estimator)."""

    def fit(self, named: NamedFit) -> Fit:
        """The coefficients that snrkit tune --by flow found for the sampler."""

    def forward(self, levels: Sequence[Level]) -> ForwardStatistics:
        """Statistics of the sampler's own model on training images, at levels of shape ()."""

    def placement(self, grid: Grid | ImageGrid) -> Placement | None:
        """What is each image's own on this grid; None where levels and what the network is told are one for all."""

    def telling(self, told: Told) -> "Sources":
        """The same for a network that is told of this power spectrum, whatever its grid follows.

        SnrkitError where nothing is known of spectra.
        """


def check_one_grid(levels: Sequence[Level]) -> None:
    """Refuse statistics of forward samples for a grid that differs from image to image: SnrkitError."""
    if levels[0].logsnr.ndim:
        raise SnrkitError("needs one grid for all images; give the grid scope: dataset")


@runtime_checkable
class Opens(Protocol):
    """A value that names resources: before sampling it is exchanged for what it opens."""

    def open(self, sources: Sources, levels: Sequence[Level]) -> Any:
        """The solver or correction with its resources, for one grid."""
