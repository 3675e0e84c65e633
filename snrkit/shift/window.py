"""What a wrong level does to a network: the sliding window (Yu et al. 2026, fig. 1b) as a matrix over all levels.

    M[s, t] = E|eps_hat|^2 per dimension of denoise(x_t, level=s): x_t a forward sample at level t, told s and read at s
    E[s, t] = E|x0_hat - x0|^2 per dimension of the same answer

The same is asked at states a little beside every level, at the OFFSETS in logsnr, whatever the grid. The curve of ln M
over them turns a norm gap into the shift of level that would cause it: the offset at which it has grown by the gap.
Where the interval of its slope at 0 holds 0 (unit-variance Gaussian data in vp: always) no shift is reported; the null
is the shift of the norm gap's own null. E's excess over its diagonal at the same t is what a wrong level costs in the
unit of the loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from snrkit.base.streams import WINDOW
from snrkit.base.transfer import send
from snrkit.base.value import MOST_HELD
from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.shift.arms import answers, mean_square, noised
from snrkit.shift.bootstrap import OF_WINDOW, Bootstrap, Curve, Number
from snrkit.shift.drawing import png
from snrkit.shift.probe import ProbeValue, Specimen

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
    squares = torch.zeros(count, count, len(x0), dtype=torch.float64, device=device)
    errors, clean = torch.zeros_like(squares), send(x0, device)
    for t, here in enumerate(levels):
        x = noised(x0, here, key)
        for s, told in enumerate(levels):
            for rows, p in answers(denoise, x, told, cond, batch=batch, device=device):
                squares[s, t, rows] = mean_square(p.eps)
                errors[s, t, rows] = mean_square(p.x0 - clean[rows].double())
    beside = torch.full((count, len(OFFSETS), len(x0)), torch.nan, dtype=torch.float64, device=device)
    for s, told in enumerate(levels):
        for k, offset in enumerate(OFFSETS if bool(told.logsnr.isfinite().all()) else ()):
            x = noised(x0, denoise.process.level(told.logsnr + offset), key)
            for rows, p in answers(denoise, x, told, cond, batch=batch, device=device):
                beside[s, k, rows] = mean_square(p.eps)
    return WindowArm(squares.cpu(), errors.cpu(), beside.cpu(), groups)


def read_window(arm: WindowArm, levels: Sequence[Level], gap: Tensor, null: Tensor, bootstrap: Bootstrap) -> Window:
    """The readings; `gap` and its `null` (L, 1 + R) are norm gaps on these levels, as often resampled."""
    weights = bootstrap.weights(arm.groups, OF_WINDOW)
    curves = (arm.beside @ weights.T).log()  # (L, K, 1 + R)
    middle = OFFSETS.index(0.0)
    slope = (curves[:, middle + 1] - curves[:, middle - 1]) / (OFFSETS[middle + 1] - OFFSETS[middle - 1])
    curve = bootstrap.curve(slope)
    steep = torch.tensor([low > 0 or high < 0 for low, high in zip(curve.low, curve.high, strict=True)])
    shifts = [
        torch.stack([invert(c - c[middle], g) for c, g in zip(curves, reading, strict=True)]).masked_fill(
            ~steep[:, None], torch.nan
        )
        for reading in (gap, null)
    ]
    means = [bootstrap.number(shift[steep].mean(0)) if bool(steep.any()) else None for shift in shifts]
    error = arm.error.mean(2)
    return Window(
        [float(level.logsnr) for level in levels],
        arm.error.shape[2],
        arm.eps_square.mean(2).tolist(),
        error.tolist(),
        (error - error.diagonal()).tolist(),
        curve,
        bootstrap.curve(shifts[0]),
        bootstrap.curve(shifts[1]),
        means[0],
        means[1],
        int(steep.sum()),
    )


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


class WindowProbe(ProbeValue):
    """The matrix of wrong levels, and the shift of level that the norm gap is equivalent to."""

    kind: Literal["window"] = "window"
    images: int = Field(
        default=64, ge=8, le=MOST_HELD, description="images behind the matrices of wrong levels (L^2 calls each)"
    )

    record: ClassVar[type[Window]] = Window
    columns: ClassVar[tuple[str, ...]] = ("shift by the norm's slope",)
    guide: ClassVar[str] = "Shift by the norm's slope: the change of level that would cause the norm gap."
    picture_guide: ClassVar[str] = (
        "In the picture of the window, row s is told, column t is shown: ln of the noise seen over that at t = s, and "
        "the excess error; white: not measured."
    )

    def read(self, specimen: Specimen) -> Window:
        """What wrong levels do, on the first held-out images; the matrices are the same for samplers of a grid."""
        s, b = specimen, specimen.bootstrap
        arm = s.equipment.once((self, s.levels_key), lambda: self._arm(s))
        arms = (s.reverse, s.forward, s.train)
        mine, held, seen = (arm.eps_square @ b.weights(arm.groups, number).T for number, arm in enumerate(arms))
        return read_window(arm, s.levels, (mine / held).log(), (seen / held).log(), b)

    def _arm(self, s: Specimen) -> WindowArm:
        rows = s.forward.groups[: self.images]
        own, cond = s.equipment.placed(s.ready, rows)
        levels, x0, key = own.levels[:-1], s.equipment.shown(rows), WINDOW.key(s.seed)
        return window_arm(s.denoise, levels, x0, rows, cond, key=key, batch=s.batch, device=s.device)

    def cells(self, record: Window) -> tuple[str, ...]:
        """The mean over the levels that can be read."""
        return ("-" if record.mean_equivalent_shift is None else record.mean_equivalent_shift.signed(),)

    def picture(self, record: Window, title: str) -> bytes:
        """The matrix of wrong levels, and what they cost."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        matrix, excess = figure.subplots(1, 2)
        for axes, values, name in (
            (matrix, record.eps_square, "ln E|eps_hat|^2"),
            (excess, record.excess, "ln excess"),
        ):
            logs = [[math.log(v) if v > 0 else math.nan for v in row] for row in values]
            shown = axes.imshow(logs, origin="lower", aspect="auto")
            ticks = range(0, len(record.logsnr), max(1, len(record.logsnr) // 6))
            axes.set_xticks(ticks, [f"{record.logsnr[i]:.1f}" for i in ticks])
            axes.set_yticks(ticks, [f"{record.logsnr[i]:.1f}" for i in ticks])
            axes.set(xlabel="logsnr of the state", ylabel="logsnr told", title=name)
            figure.colorbar(shown, ax=axes)
        return png(figure, title)
