"""How far the states of a sampler are from the level they are told, with a null from held-out images.

At every level that a sampler visits three arms of states are put to the same network, with the same labels:

    reverse   the sampler's own states
    forward   alpha*x0 + sigma*eps of held-out images: what states at this level really look like
    train     the same of training images

Two readings, both with a known null:

    norm gap        ln of mean |eps_hat|^2, reverse over forward; its null is train over forward, 0 for a network that
                    does not tell training images from others
    variance ratio  Var[x] / (alpha^2 Var[x0] + sigma^2), Var over images, averaged over pixels, Var[x0] of the training
                    split; its null is the forward arm's, 1 up to sampling error

eps_hat is what the network itself says, before any correction of belief; dividing eps by a constant would otherwise
close the gap by definition. Intervals are percentile bootstrap over images; forward samples of one image with several
noises are resampled together.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snrkit.level import Level
from snrkit.prediction import SAME, Cond, Denoiser, Prediction, Same, Wrapped
from snrkit.shift.config import ShiftConfig
from snrkit.step import Step
from snrkit.streams import BOOTSTRAP, stream


@dataclass(frozen=True, slots=True)
class Arm:
    """States and answers at each of L levels: squared norms (L, n) per dimension, flattened states (L, n, D)."""

    eps_square: Tensor  # float64, mean over dimensions of eps_hat^2
    states: Tensor  # float32
    groups: Tensor  # (n,) int64: samples of one group are resampled together


@dataclass(frozen=True, slots=True)
class Curve:
    """A reading at each level with its interval."""

    value: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, slots=True)
class Number:
    """A reading with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Shift:
    """The measurement of one sampler. Every list has one entry a level, in the order of sampling."""

    logsnr: list[float]
    images: int
    rms_reverse: Curve
    rms_forward: Curve
    rms_train: Curve
    norm_reverse: list[float]  # mean L2 norm of eps_hat
    norm_forward: list[float]
    norm_gap: Curve  # nats
    norm_gap_null: Curve
    variance_ratio: Curve
    variance_ratio_null: Curve
    mean_norm_gap: Number
    mean_norm_gap_null: Number
    mean_log_variance_ratio: Number
    mean_log_variance_ratio_null: Number


class Recorder:
    """A denoiser that keeps the first question it was told the level of, and its answer before any correction."""

    def __init__(self, denoise: Denoiser) -> None:
        self.wrapped = Wrapped(denoise.process, self._answer)
        self._denoise = denoise
        self.first: tuple[Tensor, Level, Prediction] | None = None

    def _answer(
        self, x: Tensor, level: Level, told: Level | Same | None = SAME, cond: Cond | None = None
    ) -> Prediction:
        prediction = self._denoise(x, level, told=told, cond=cond)
        if self.first is None and isinstance(told, Same):
            self.first = (x, level, prediction)
        return prediction

    def take(self) -> tuple[Tensor, Level, Prediction]:
        """The first question and answer, forgotten afterwards."""
        assert self.first is not None
        taken, self.first = self.first, None
        return taken


def reverse_arm(denoise: Denoiser, batches: Iterable[Callable[[Denoiser], Iterable[Step]]]) -> tuple[Arm, list[Level]]:
    """(arm, levels) of trajectories; each batch is a function that samples with the denoiser it is given."""
    squares: list[Tensor] = []
    states: list[Tensor] = []
    levels: list[Level] = []
    for run in batches:
        recorder, rows, seen, places = Recorder(denoise), [], [], []
        for _ in run(recorder.wrapped):
            x, level, prediction = recorder.take()
            rows.append(_mean_square(prediction.eps))
            seen.append(x.flatten(1).float().cpu())
            places.append(level)
        squares.append(torch.stack(rows))
        states.append(torch.stack(seen))
        levels = places
    arm = Arm(torch.cat(squares, 1), torch.cat(states, 1), torch.arange(sum(s.shape[1] for s in squares)))
    return arm, levels


@torch.no_grad()
def forward_arm(
    denoise: Denoiser,
    levels: Sequence[Level],
    x0: Tensor,
    groups: Tensor,
    labels: Tensor | None,
    *,
    key: Sequence[int],
    batch: int,
    device: torch.device,
) -> Arm:
    """The arm of clean images x0 (n, *) noised to every level, with noise drawn from (key, level's index)."""
    squares, states = [], []
    for index, level in enumerate(levels):
        noise = stream(*key, index).standard_normal(tuple(x0.shape), dtype=np.float32)
        rows, seen = [], []
        for part in torch.split(torch.arange(len(x0)), batch):
            clean = x0[part].double()
            alpha, sigma = level.scales(clean)
            x = (alpha * clean + sigma * torch.from_numpy(noise)[part]).to(device)
            cond = Cond(labels=None if labels is None else labels[part].to(device))
            rows.append(_mean_square(denoise(x, level, cond=cond).eps))
            seen.append(x.flatten(1).float().cpu())
        squares.append(torch.cat(rows))
        states.append(torch.cat(seen))
    return Arm(torch.stack(squares), torch.stack(states), groups)


def _mean_square(eps: Tensor) -> Tensor:
    return eps.double().square().flatten(1).mean(1).cpu()


def compare(
    reverse: Arm, forward: Arm, train: Arm, levels: Sequence[Level], variance: float, config: ShiftConfig, seed: int
) -> Shift:
    """All readings of the three arms. `variance` is Var[x0] over images of the training split, averaged over pixels."""
    alpha = torch.stack([level.alpha for level in levels])
    sigma = torch.stack([level.sigma for level in levels])
    nominal = alpha**2 * variance + sigma**2
    squares, ratios = {}, {}
    for number, (name, arm) in enumerate({"reverse": reverse, "forward": forward, "train": train}.items()):
        weights = _weights(arm.groups, config.bootstrap, (BOOTSTRAP, seed, number))
        squares[name] = arm.eps_square @ weights.T  # (L, 1 + R): the first column is the sample itself
        if name != "train":
            ratios[name] = torch.stack([_variance(x, arm.groups, weights) for x in arm.states]) / nominal[:, None]
    gap = (squares["reverse"] / squares["forward"]).log()
    null = (squares["train"] / squares["forward"]).log()
    logs = {name: ratio.log() for name, ratio in ratios.items()}
    level = config.confidence
    return Shift(
        [float(place.logsnr) for place in levels],
        reverse.eps_square.shape[1],
        _curve(squares["reverse"].sqrt(), level),
        _curve(squares["forward"].sqrt(), level),
        _curve(squares["train"].sqrt(), level),
        _norms(reverse),
        _norms(forward),
        _curve(gap, level),
        _curve(null, level),
        _curve(ratios["reverse"], level),
        _curve(ratios["forward"], level),
        _number(gap.mean(0), level),
        _number(null.mean(0), level),
        _number(logs["reverse"].mean(0), level),
        _number(logs["forward"].mean(0), level),
    )


def _weights(groups: Tensor, resamples: int, key: Sequence[int]) -> Tensor:
    """(1 + R, n) weights that sum to 1: the sample itself, then R bootstrap resamples of whole groups."""
    kinds, place = torch.unique(groups, return_inverse=True)
    counts = stream(*key).multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), size=resamples)
    weights = torch.cat([torch.ones(1, len(groups)), torch.from_numpy(counts)[:, place].double()]).double()
    return weights / weights.sum(1, keepdim=True)


def _variance(states: Tensor, groups: Tensor, weights: Tensor) -> Tensor:
    """Variance over samples, averaged over dimensions, of states (n, D) under each row of weights (1 + R,).

    Deviations are from the arm's own mean in every row, and the variance of that mean is added back, estimated from the
    spread of whole groups: so the reading is unbiased, with repeated images too, and resamples centre on it.
    """
    centred = states.double() - states.double().mean(0)
    kinds, place = torch.unique(groups, return_inverse=True)
    sums = centred.new_zeros(len(kinds), centred.shape[1]).index_add_(0, place, centred) / len(states)
    of_mean = sums.square().sum(0).mean() * len(kinds) / max(1, len(kinds) - 1)
    return weights @ centred.square().mean(1) + of_mean


def _norms(arm: Arm) -> list[float]:
    return [float(v) for v in (arm.eps_square * arm.states.shape[2]).sqrt().mean(1)]


def _bounds(resamples: Tensor, level: float) -> tuple[Tensor, Tensor]:
    edge = (1 - level) / 2
    low, high = torch.quantile(resamples, torch.tensor([edge, 1 - edge], dtype=torch.float64), dim=-1)
    return low, high


def _curve(values: Tensor, level: float) -> Curve:
    low, high = _bounds(values[:, 1:], level)
    return Curve(values[:, 0].tolist(), low.tolist(), high.tolist())


def _number(values: Tensor, level: float) -> Number:
    low, high = _bounds(values[1:], level)
    return Number(float(values[0]), float(low), float(high))
