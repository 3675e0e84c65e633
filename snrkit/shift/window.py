"""What a wrong level does to a network: the sliding window (Yu et al. 2026, fig. 1b) as a matrix over all levels.

    M[s, t] = E|eps_hat|^2 per dimension of denoise(x_t, level=s): x_t a forward sample at level t, told s and read at s
    E[s, t] = E|x0_hat - x0|^2 per dimension of the same answer

The slope of ln M[s, t] in the logsnr of t, near t = s, turns a norm gap g into the shift of level that would cause it,
g / slope. Where the slope's interval holds 0 (unit-variance Gaussian data in vp: always) no shift is reported. E's
excess over its diagonal at the same t is what a wrong level costs in the unit of the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.level import Level
from snrkit.prediction import Cond, Denoiser
from snrkit.shift.arms import mean_square, noised
from snrkit.shift.bootstrap import Bootstrap, Curve, Number


@dataclass(frozen=True, slots=True)
class Window:
    """The matrices of a grid; rows are what the network is told, columns where the state is."""

    logsnr: list[float]
    images: int
    eps_square: list[list[float]]  # M[s, t]
    x0_error: list[list[float]]  # E[s, t]
    excess: list[list[float]]  # E[s, t] - E[t, t]
    slope: Curve  # d ln M[s, t] / d logsnr of t at t = s
    equivalent_shift: Curve  # nats; NaN where the slope's interval holds 0
    mean_equivalent_shift: Number | None


@dataclass(frozen=True, slots=True)
class WindowArm:
    """Squares of each image: eps and error (L, L, n)."""

    eps_square: Tensor
    error: Tensor
    groups: Tensor


@torch.no_grad()
def window_arm(
    denoise: Denoiser,
    levels: Sequence[Level],
    x0: Tensor,
    groups: Tensor,
    labels: Tensor | None,
    *,
    key: Sequence[int],
    batch: int,
    device: torch.device,
) -> WindowArm:
    """Every state at every level t put to the network told every level s; an image keeps its noise over levels."""
    count = len(levels)
    squares = torch.zeros(count, count, len(x0), dtype=torch.float64)
    errors = torch.zeros_like(squares)
    for t, here in enumerate(levels):
        x = noised(x0, here, key)
        for part in torch.split(torch.arange(len(x0)), batch):
            cond = Cond(labels=None if labels is None else labels[part].to(device))
            state, true = x[part].to(device), x0[part].to(device).double()
            for s, told in enumerate(levels):
                p = denoise(state, told, cond=cond)
                squares[s, t, part] = mean_square(p.eps)
                errors[s, t, part] = mean_square(p.x0 - true)
    return WindowArm(squares, errors, groups)


def read_window(arm: WindowArm, levels: Sequence[Level], gap: Tensor | None, bootstrap: Bootstrap) -> Window:
    """The readings; `gap` (L, 1 + R) is the norm gap of a sampler on the same levels, with as many resamples."""
    weights = bootstrap.weights(arm.groups, 3)
    logsnr = torch.stack([level.logsnr for level in levels])
    slope = _slope(arm.eps_square, logsnr, weights)
    curve = bootstrap.curve(slope)
    flat = [low <= 0 <= high or low != low for low, high in zip(curve.low, curve.high, strict=True)]  # noqa: PLR0124
    shift = torch.full_like(slope, torch.nan) if gap is None else gap / slope
    shift[torch.tensor(flat)] = torch.nan
    error = arm.error.mean(2)
    known = shift[~torch.tensor(flat)] if gap is not None else shift[:0]
    return Window(
        logsnr.tolist(), arm.error.shape[2], arm.eps_square.mean(2).tolist(), error.tolist(),
        (error - error.diagonal()).tolist(), curve, bootstrap.curve(shift),
        bootstrap.number(known.mean(0)) if len(known) else None,
    )  # fmt: skip


def _slope(squares: Tensor, logsnr: Tensor, weights: Tensor) -> Tensor:
    """(L, 1 + R) slopes of ln M[s, t] over t at t = s, between the neighbouring levels; NaN where one is infinite."""
    log_mean = (squares @ weights.T).log()  # (L, L, 1 + R)
    last, rows = len(logsnr) - 1, []
    for s in range(len(logsnr)):
        low, high = max(0, s - 1), min(last, s + 1)
        if high > low and not bool(logsnr[low].isfinite()):
            low += 1
        width = logsnr[high] - logsnr[low]
        rows.append((log_mean[s, high] - log_mean[s, low]) / (width if high > low else torch.nan))
    return torch.stack(rows)
