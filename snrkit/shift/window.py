"""What a wrong level does to a network: the sliding window (Yu et al. 2026, fig. 1b) as a matrix over all levels.

    M[s, t] = E|eps_hat|^2 per dimension of denoise(x_t, level=s): x_t a forward sample at level t, told s and read at s
    E[s, t] = E|x0_hat - x0|^2 per dimension of the same answer

The same is asked at states a little beside every level, at the OFFSETS in logsnr, whatever the grid. The curve of ln M
over them turns a norm gap into the shift of level that would cause it: the offset at which it has grown by the gap.
Where the interval of its slope at 0 holds 0 (unit-variance Gaussian data in vp: always) no shift is reported; the null
is the shift of the norm gap's own null. E's excess over its diagonal at the same t is what a wrong level costs in the
unit of the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.shift.arms import answers, mean_square, noised
from snrkit.shift.bootstrap import OF_WINDOW, Bootstrap, Curve, Number

FARTHEST = 3.0  # nats
OFFSETS = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)  # nats of logsnr


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
    equivalent_shift_null: Curve
    mean_equivalent_shift: Number | None
    mean_equivalent_shift_null: Number | None
    levels_read: int


@dataclass(frozen=True, slots=True)
class WindowArm:
    """Squares of each image: eps and error (L, L, n); eps at the OFFSETS of each level (L, K, n), NaN at pure noise."""

    eps_square: Tensor
    error: Tensor
    beside: Tensor
    groups: Tensor


@torch.no_grad()
def window_arm(
    denoise: Denoiser,
    levels: Sequence[Level],
    x0: Tensor,
    groups: Tensor,
    cond: Cond,
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
        for s, told in enumerate(levels):
            for part, _, p in answers(denoise, x, told, cond, batch=batch, device=device):
                squares[s, t, part] = mean_square(p.eps)
                errors[s, t, part] = mean_square(p.x0.cpu() - x0[part].double())
    beside = torch.full((count, len(OFFSETS), len(x0)), torch.nan, dtype=torch.float64)
    for s, told in enumerate(levels):
        for k, offset in enumerate(OFFSETS if bool(told.logsnr.isfinite().all()) else ()):
            x = noised(x0, denoise.process.level(told.logsnr + offset), key)
            for part, _, p in answers(denoise, x, told, cond, batch=batch, device=device):
                beside[s, k, part] = mean_square(p.eps)
    return WindowArm(squares, errors, beside, groups)


def read_window(arm: WindowArm, levels: Sequence[Level], gap: Tensor, null: Tensor, bootstrap: Bootstrap) -> Window:
    """The readings; `gap` and its `null` (L, 1 + R) are norm gaps on these levels, as often resampled."""
    weights = bootstrap.weights(arm.groups, OF_WINDOW)
    curves = (arm.beside @ weights.T).log()  # (L, K, 1 + R)
    middle = OFFSETS.index(0.0)
    slope = (curves[:, middle + 1] - curves[:, middle - 1]) / (OFFSETS[middle + 1] - OFFSETS[middle - 1])
    curve = bootstrap.curve(slope)
    steep = torch.tensor([low > 0 or high < 0 for low, high in zip(curve.low, curve.high, strict=True)])
    shifts = [
        torch.stack([invert(c - c[middle], g) for c, g in zip(curves, reading, strict=True)])
        .masked_fill(~steep[:, None], torch.nan)
        for reading in (gap, null)
    ]  # fmt: skip
    means = [bootstrap.number(shift[steep].mean(0)) if bool(steep.any()) else None for shift in shifts]
    error = arm.error.mean(2)
    return Window(
        [float(level.logsnr) for level in levels], arm.error.shape[2], arm.eps_square.mean(2).tolist(), error.tolist(),
        (error - error.diagonal()).tolist(), curve, bootstrap.curve(shifts[0]), bootstrap.curve(shifts[1]),
        means[0], means[1], int(steep.sum()),
    )  # fmt: skip


def invert(curve: Tensor, rise: Tensor) -> Tensor:
    """The offset (1 + R,) at which each column of `curve` (K, 1 + R), 0 at offset 0, has grown by `rise` (1 + R,).

    Piecewise linear between the OFFSETS, followed outwards from 0 on the side where the curve moves towards `rise`, and
    straight on beyond the last, but no farther than FARTHEST: such a reading says "at least".
    """
    offsets, middle = torch.tensor(OFFSETS, dtype=torch.float64), OFFSETS.index(0.0)
    upward = (curve[middle + 1] - curve[middle - 1]) * rise > 0  # towards larger offsets
    found = torch.empty_like(rise)
    for side, way in ((upward, 1), (~upward, -1)):
        last = len(OFFSETS) - 1 if way == 1 else 0
        guess = torch.full_like(rise, torch.nan)
        for k in range(last, middle, -way):  # from outside in, so that the innermost crossing wins
            before, after = curve[k - way], curve[k]
            share = (rise - before) / (after - before)
            inside = (share >= 0) & ((share <= 1) | (k == last))
            guess = torch.where(inside, offsets[k - way] + share * (offsets[k] - offsets[k - way]), guess)
        found[side] = guess[side]
    return found.clamp(-FARTHEST, FARTHEST)
