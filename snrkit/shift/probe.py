"""Probes: what is read of a sampler beside the norms and variances that always are.

A probe is a Value, named by its kind in `shift.probes`. It reads a specimen, a sampler under the instrument, into a
record, and says how that record is shown: the cells of a row, the sentences that explain them, a remark on all samplers
of a run, a picture. Files, commands and reports know probes by this protocol alone.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from snrkit.base.value import Value
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.sampling.sampler import OpenedSampler, Sampler
from snrkit.sampling.step import Noise, Solver
from snrkit.shift.arms import Arm
from snrkit.shift.bootstrap import Bootstrap
from snrkit.shift.estimator import Estimator
from snrkit.shift.measure import Reference
from snrkit.shift.states import StateReader, Watch
from snrkit.training.holdout import Pairs

T = TypeVar("T")
R = TypeVar("R")


class Equipment(Protocol):
    """What an instrument does for a probe when asked."""

    def shown(self, rows: Tensor) -> Tensor:
        """Clean images (n, C, H, W) of the data set, as training shows them."""

    def placed(self, ready: OpenedSampler, rows: Tensor) -> tuple[OpenedSampler, Cond]:
        """The sampler as it would be for images of the data set (n,), and what the network is told of them."""

    def begin(
        self, sampler: Sampler, ready: OpenedSampler, seeds: Sequence[int]
    ) -> tuple[OpenedSampler, Tensor, Cond, Noise]:
        """(the sampler, first states, condition, noise) of trajectories; the same every time for the same seeds."""

    def walk(self, sampler: Sampler, ready: OpenedSampler, visited: Sequence[int], reader: StateReader) -> Arm:
        """The arm of all trajectories walked by `ready` from the first states of `sampler`, at the levels `visited`."""

    def solver_on(self, sampler: Sampler, levels: Sequence[Level]) -> Solver:
        """The sampler's solver, opened for other levels than its grid's."""

    @property
    def covariance(self) -> Tensor | None:
        """(D, D) of the training split, within classes where the network knows them; None for large images."""

    def pairs(self, count: int) -> Pairs | None:
        """About `count` pairs as training draws them; None for a network that was trained elsewhere."""

    def estimator(self) -> Estimator:
        """What snrkit fit-estimator made of this run. RunError when it is absent, damaged or of another config."""

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made for the first sampler that asks for `key` and kept for the others."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """One sampler under the instrument, and what has been found out about it."""

    sampler: Sampler
    ready: OpenedSampler
    denoise: Denoiser
    sigma_data: float  # as the network was trained with
    reverse: Arm  # its own states
    forward: Arm  # held-out images noised to its levels; `groups` are their rows in the data set
    train: Arm  # training images likewise
    reference: Reference
    bootstrap: Bootstrap
    seeds: Sequence[int]  # of the trajectories
    seed: int  # of the experiment, for noise of the probe's own
    batch: int
    device: torch.device
    levels_key: Hashable  # equal for samplers of equal levels, which share their forward arms
    equipment: Equipment

    @property
    def levels(self) -> tuple[Level, ...]:
        """Those at which states are read, of shape (): all but the clean image's."""
        return self.ready.typical[:-1]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known of a measurement before it begins."""

    sampler: str
    one_grid: bool  # the sampler has one grid for all images
    estimator: bool  # snrkit fit-estimator has made one


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the memory of a probe follows."""

    images: int  # of the training split, mirrored ones counted
    trajectories: int
    dimensions: int  # numbers of an image
    levels: int  # the clean one counted, of all samplers whose flows differ


class Probe(Protocol[R]):
    """Reads a specimen into a record R, a frozen dataclass that JSON can hold.

    Every option has a default. `shift.probes: [horizon]` with `horizon_steps: 2` beside it is `HorizonProbe(steps=2)`.
    """

    record: ClassVar[type[Any]]  # R
    columns: ClassVar[tuple[str, ...]]  # of the report's table of probes
    guide: ClassVar[str]  # sentences that say how to read the columns
    picture_guide: ClassVar[str]  # and the picture

    @property
    def kind(self) -> str:
        """Its name in `shift.probes`, in files and in the names of files."""

    def missing(self, given: Circumstances) -> str | None:
        """What it asks for that is not there, and what to do, to follow its name in a sentence; None if nothing."""

    def memory(self, sizes: Sizes) -> int:
        """Bytes that it holds beside the arms."""

    def watch(self, equipment: Equipment) -> Watch | None:
        """What it reads of every state of the sampler and of held-out images, which are not kept; None if nothing.

        `read` finds it in `specimen.reverse.of_states.watched` and in that of `forward`, by the probe's kind.
        """

    def evaluations(self, specimen: Specimen) -> int | None:
        """Of one image each, that the network makes about for `read`, all trajectories together; None: not known."""

    def read(self, specimen: Specimen) -> R | None:
        """The reading; None where this sampler or network has none."""

    def cells(self, record: R) -> tuple[str, ...]:
        """One text a column."""

    def remark(self, records: Sequence[R]) -> str | None:
        """A paragraph below the table, on the records of all samplers of a run, of which there is one at least."""

    def warning(self, record: R) -> str | None:
        """What a reader must know before this sampler's readings are believed, to follow its name; None if nothing."""

    def picture(self, record: R, title: str) -> bytes | None:
        """A PNG."""


class ProbeValue(Value):
    """What most probes answer: they ask for nothing, hold little, and show no more than their columns."""

    picture_guide: ClassVar[str] = ""

    def missing(self, given: Circumstances) -> str | None:
        return None

    def memory(self, sizes: Sizes) -> int:
        return 0

    def watch(self, equipment: Equipment) -> Watch | None:
        return None

    def evaluations(self, specimen: Specimen) -> int | None:
        return None

    def remark(self, records: Sequence[Any]) -> str | None:
        return None

    def warning(self, record: Any) -> str | None:
        return None

    def picture(self, record: Any, title: str) -> bytes | None:
        return None
