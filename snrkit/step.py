"""One step of a sampler, and the protocols of whatever takes part in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from snrkit.level import Level
from snrkit.prediction import Denoiser, Prediction


@dataclass(frozen=True, slots=True)
class Place:
    """Where the sampler stands: step `index` of `grid` goes from level `here` to level `there`."""

    index: int
    grid: tuple[Level, ...]
    here: Level
    there: Level


@dataclass(frozen=True, slots=True)
class Call:
    """One answer of the denoiser, read at `level`."""

    level: Level
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Step:
    """What happened in one step: from `x` through `calls` to `x_next`. Probes read calls[0], DCW calls[-1]."""

    place: Place
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

    def step(
        self, denoise: Denoiser, x: Tensor, place: Place, memory: Memory, noise: Noise
    ) -> tuple[Tensor, tuple[Call, ...], Memory]:
        """(x_next, the answers it used in order, memory for the next step)."""


@runtime_checkable
class BeliefCorrection(Protocol):
    """Changes what the model says: epsilon scaling, guidance, clipping. Wraps the denoiser anew for each step."""

    def wrap(self, denoise: Denoiser, place: Place) -> Denoiser:
        """The denoiser that the solver is to ask in this step."""


@runtime_checkable
class LevelCorrection(Protocol):
    """Changes where the state is held to be: time shift."""

    def move(self, x: Tensor, place: Place) -> Place:
        """The place from which the step is to be made."""


@runtime_checkable
class StateCorrection(Protocol):
    """Changes where the step went: DCW."""

    def after(self, step: Step) -> Tensor:
        """The corrected x_next."""


Correction = BeliefCorrection | LevelCorrection | StateCorrection
