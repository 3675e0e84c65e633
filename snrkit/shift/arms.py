"""Arms of a measurement: states at every level, and what the network says of them.

    reverse   the sampler's own states
    forward   alpha*x0 + sigma*eps of given images: what states at this level really look like

What the network says is recorded before any correction of belief; dividing eps by a constant would otherwise close a
norm gap by definition.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snrkit.base.streams import generator
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import SAME, Cond, Denoiser, Prediction, Same, Wrapped
from snrkit.sampling.step import Step

STATE_BYTES = 4  # of a number in an arm
FORWARD_IMAGES = 512  # behind the statistics that Analytic-DPM and x0_rescale ask for


@dataclass(frozen=True, slots=True)
class Arm:
    """States and answers of n samples at each of L levels."""

    eps_square: Tensor  # (L, n) float64, mean over dimensions of eps_hat^2
    x0_square: Tensor  # (L, n) float64, mean over dimensions of x0_hat^2
    x0_variance: Tensor  # (L, n) float64, variance over dimensions of x0_hat
    states: Tensor  # (L, n, C, H, W) float32
    groups: Tensor  # (n,) int64: samples of one group are resampled together

    def first(self, count: int) -> "Arm":
        """The first `count` samples."""
        return Arm(
            self.eps_square[:, :count], self.x0_square[:, :count], self.x0_variance[:, :count], self.states[:, :count],
            self.groups[:count],
        )  # fmt: skip

    def from_level(self, index: int) -> "Arm":
        """The levels from `index` on."""
        return Arm(
            self.eps_square[index:], self.x0_square[index:], self.x0_variance[index:], self.states[index:], self.groups
        )


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


class Rows:
    """What is kept of one level, batch by batch."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, x: Tensor, prediction: Prediction) -> None:
        """Keep the states x (B, *) and the answer."""
        x0 = prediction.x0.double().flatten(1)
        spread = x0.var(1, correction=0).cpu()
        self._parts.append((mean_square(prediction.eps), mean_square(prediction.x0), spread, x.float().cpu()))

    def joined(self) -> list[Tensor]:
        """eps_square, x0_square, x0_variance (n,) and states (n, *)."""
        return [torch.cat(part) for part in zip(*self._parts, strict=True)]


def make_arm(rows: Sequence[Rows], groups: Tensor) -> Arm:
    """The arm of L levels' rows."""
    eps, x0, spread, states = (torch.stack(part) for part in zip(*(row.joined() for row in rows), strict=True))
    return Arm(eps, x0, spread, states, groups)


def mean_square(values: Tensor) -> Tensor:
    """Mean over dimensions of values^2, (B,) float64 on the CPU."""
    return values.double().square().flatten(1).mean(1).cpu()


def reverse_arm(
    denoise: Denoiser,
    batches: Iterable[Callable[[Denoiser], Iterable[Step]]],
    visited: Sequence[int],
) -> Arm:
    """The arm of trajectories; each batch is a function that samples with the denoiser it is given.

    `visited` are the indices of the grid whose states are kept, one level of the arm each.
    """
    place = {index: number for number, index in enumerate(visited)}
    rows = [Rows() for _ in visited]
    count = 0
    for run in batches:
        recorder = Recorder(denoise)
        for step in run(recorder.wrapped):
            if step.position.index in place:
                rows[place[step.position.index]].add(step.x, recorder.take(step))
                count += len(step.x) if place[step.position.index] == 0 else 0
            recorder.first = None
    return make_arm(rows, torch.arange(count))


def noised(x0: Tensor, level: Level, key: Sequence[int]) -> Tensor:
    """alpha*x0 + sigma*eps, float64, of images x0 (n, *), with noise drawn from `key`."""
    noise = generator(*key).standard_normal(tuple(x0.shape), dtype=np.float32)
    alpha, sigma = level.scales(x0.double())
    return alpha * x0.double() + sigma * torch.from_numpy(noise)


def answers(
    denoise: Denoiser, x: Tensor, level: Level, cond: Cond, *, batch: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Prediction]]:
    """(indices, states, answer) of states x (n, *), told and read at `level`, in parts of `batch` on the device."""
    for part in torch.split(torch.arange(len(x)), batch):
        state = x[part].to(device)
        yield part, state, denoise(state, level.at(part), cond=cond.at(part).to(device))


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
) -> Arm:
    """The arm of clean images x0 (n, *) noised to every level, () or (n,), with noise from (key, level's index)."""
    rows = [Rows() for _ in levels]
    for index, level in enumerate(levels):
        x = noised(x0, level, (*key, index))
        for _, state, prediction in answers(denoise, x, level, cond, batch=batch, device=device):
            rows[index].add(state, prediction)
    return make_arm(rows, groups)
