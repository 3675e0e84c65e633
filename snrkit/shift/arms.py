"""Arms of a measurement: states at every level, and what the network says of them.

    reverse   the sampler's own states
    forward   alpha*x0 + sigma*eps of given images: what states at this level really look like

States are read level by level (states.py) and kept no longer. What the network says is recorded before any correction
of belief; dividing eps by a constant would otherwise close a norm gap by definition.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snrkit.base.memory import give_back
from snrkit.base.streams import generator
from snrkit.base.transfer import send
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, Wrapped
from snrkit.sampling.step import Step
from snrkit.shift.states import StateReader, StateReadings, stack

HELD_BYTES = 56
"""Of a number of a state: where its walk stands and up to five answers of which a solver makes the next, in float64,
and in float32 the state of the level that is being read and the clean image."""
MANY_BYTES = 2**24  # of a batch of states, from which holes in memory add up
FORWARD_IMAGES = 512  # behind the statistics that Analytic-DPM and x0_rescale ask for
NOTHING = StateReader()


@dataclass(frozen=True, slots=True)
class Arm:
    """What was read of the states and answers of n samples at each of L levels."""

    eps_square: Tensor  # (L, n) float64, mean over dimensions of eps_hat^2
    x0_square: Tensor  # (L, n) float64, mean over dimensions of x0_hat^2
    x0_variance: Tensor  # (L, n) float64, variance over dimensions of x0_hat
    of_states: StateReadings
    groups: Tensor  # (n,) int64: samples of one group are resampled together
    shape: tuple[int, int, int]  # of a state


class Recorder:
    """A denoiser that keeps the first question it was told the level of, and its answer before any correction."""

    def __init__(self, denoise: Denoiser) -> None:
        self.wrapped = Wrapped(denoise.process, self._answer)
        self._denoise = denoise
        self.first: tuple[Tensor, Level, Prediction] | None = None
        self._cond: Cond | None = None

    def _answer(
        self, x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        prediction = self._denoise(x, level, told=told, cond=cond)
        if self.first is None and isinstance(told, Same):
            self.first, self._cond = (x, level, prediction), cond
        return prediction

    def take(self, step: Step) -> Prediction:
        """What the network says of the state with which `step` began, at its nominal level.

        That is the first question of most samplers; one that raised the level first (churn) or moved it (time shift) is
        asked once more.
        """
        assert self.first is not None
        (x, level, prediction), self.first = self.first, None
        nominal = step.position.nominal
        if x is step.x and level is nominal:
            return prediction
        return self._denoise(step.x, nominal, cond=self._cond)


class LevelStates:
    """The states and answers of n samples at one level, batch by batch, until they are read."""

    def __init__(self, groups: Tensor, reader: StateReader) -> None:
        self.groups = groups
        self._reader = reader
        self._answers: Tensor | None = None  # (3, n) float64, where the network answers
        self._states: Tensor | None = None
        self._count = 0
        self.shape: tuple[int, int, int] | None = None

    def add(self, x: Tensor, prediction: Prediction) -> None:
        """The next states x (B, C, H, W), which are kept in float32 where they lie, and the answer."""
        rows = slice(self._count, self._count + len(x))
        if self._answers is None:
            self._answers = torch.empty(3, len(self.groups), dtype=torch.float64, device=x.device)
        self._answers[0, rows] = mean_square(prediction.eps)
        self._answers[1, rows] = mean_square(prediction.x0)
        self._answers[2, rows] = prediction.x0.double().flatten(1).var(1, correction=0)
        self.shape = (x.shape[1], x.shape[2], x.shape[3])
        if self._reader.reads:
            if self._states is None:
                self._states = torch.empty(len(self.groups), *self.shape, dtype=torch.float32, device=x.device)
            self._states[rows] = x
        self._count += len(x)
        if x.device.type == "cpu" and x.nbytes >= MANY_BYTES:
            give_back()

    def read(self, index: int) -> "LevelReadings":
        """All that is kept of them, as level `index` of the reader's."""
        count, states = len(self.groups), self._states
        of_states = self._reader.nothing(count) if states is None else self._reader.read(index, states, self.groups)
        assert self.shape is not None
        assert self._answers is not None
        assert self._count == count
        eps, x0, spread = self._answers.cpu()
        return LevelReadings(eps, x0, spread, of_states, self.shape)


@dataclass(frozen=True, slots=True)
class LevelReadings:
    """An arm's readings of one level."""

    eps_square: Tensor  # (n,), as the following
    x0_square: Tensor
    x0_variance: Tensor
    of_states: StateReadings  # without a dimension for levels
    shape: tuple[int, int, int]


def make_arm(levels: Sequence[LevelReadings], groups: Tensor) -> Arm:
    """The arm of L levels."""
    return Arm(
        torch.stack([level.eps_square for level in levels]),
        torch.stack([level.x0_square for level in levels]),
        torch.stack([level.x0_variance for level in levels]),
        stack([level.of_states for level in levels]),
        groups,
        levels[0].shape,
    )


def mean_square(values: Tensor) -> Tensor:
    """Mean over dimensions of values^2, (B,) float64."""
    return values.double().square().flatten(1).mean(1)


def reverse_arm(
    denoise: Denoiser,
    batches: Iterable[Callable[[Denoiser], Iterable[Step]]],
    visited: Sequence[int],
    images: int,
    reader: StateReader = NOTHING,
) -> Arm:
    """The arm of so many trajectories; each batch is a function that samples with the denoiser it is given.

    `visited` are the indices of the grid that are read, ascending, one level of the arm each. All batches are walked
    to one of them before any goes on to the next: so the states of one level are held, and of all trajectories no more
    than where they stand.
    """
    walks = [_Walk(denoise, run) for run in batches]
    groups, found = torch.arange(images), []
    for number, index in enumerate(visited):
        level = LevelStates(groups, reader)
        for walk in walks:
            level.add(*walk.to(index))
        found.append(level.read(number))
    return make_arm(found, groups)


class _Walk:
    """A batch of trajectories that goes as far as it is asked to."""

    def __init__(self, denoise: Denoiser, run: Callable[[Denoiser], Iterable[Step]]) -> None:
        self._recorder = Recorder(denoise)
        self._steps = iter(run(self._recorder.wrapped))

    def to(self, index: int) -> tuple[Tensor, Prediction]:
        """The states with which step `index` of the grid begins, and what the network says of them."""
        for step in self._steps:
            if step.position.index == index:
                return step.x, self._recorder.take(step)
            self._recorder.first = None
        raise AssertionError(f"no step {index}")


def noise_of(key: Sequence[int], shape: Sequence[int], batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, standard normal float32 (B, *)) of every batch of indices, which follow one another, drawn from `key`.

    However they are divided, they are the rows of one draw of all.
    """
    rng = generator(*key)
    for part in batches:
        yield part, torch.from_numpy(rng.standard_normal((len(part), *shape), dtype=np.float32))


def noised(x0: Tensor, level: Level, key: Sequence[int]) -> Tensor:
    """alpha*x0 + sigma*eps, float64, of images x0 (n, *), with noise drawn from `key`."""
    ((_, noise),) = noise_of(key, x0.shape[1:], [torch.arange(len(x0))])
    return with_noise(x0, level, noise)


def with_noise(x0: Tensor, level: Level, noise: Tensor) -> Tensor:
    """alpha*x0 + sigma*eps, float64."""
    alpha, sigma = level.scales(x0.double())
    return alpha * x0.double() + sigma * noise


def answers(
    denoise: Denoiser, x: Tensor, level: Level, cond: Cond, *, batch: int, device: torch.device
) -> Iterator[tuple[slice, Prediction]]:
    """(rows, answer) of states x (n, *), told and read at `level`, in parts of `batch` on the device."""
    for first in range(0, len(x), batch):
        rows = slice(first, first + batch)
        yield rows, denoise(send(x[rows], device), level.at(rows), cond=cond.at(rows).to(device))


@torch.no_grad()
def forward_arm(
    denoise: Denoiser,
    levels: Sequence[Level],
    x0: Tensor,
    groups: Tensor,
    cond: Cond,
    *,
    key: Sequence[int],
    batch: int,
    device: torch.device,
    reader: StateReader = NOTHING,
) -> Arm:
    """The arm of clean images x0 (n, *) noised to every level, () or (n,), with noise from (key, level's index)."""
    found, parts = [], torch.split(torch.arange(len(x0)), batch)
    for index, level in enumerate(levels):
        kept = LevelStates(groups, reader)
        for part, noise in noise_of((*key, index), x0.shape[1:], parts):
            state = send(with_noise(x0[part], level.at(part), noise), device)
            kept.add(state, denoise(state, level.at(part), cond=cond.at(part).to(device)))
        found.append(kept.read(index))
    return make_arm(found, groups)
