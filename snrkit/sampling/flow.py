"""The flow of a network: its fine deterministic trajectory from a first state, which a coarse sampler approximates.

The sampler's grid is refined and walked twice by UniPC with p = 3, whose corrector makes it one of order 4, with n and
with n/2 steps. Where both share their levels the two are extrapolated,

    X* = X_n + (X_n - X_(n/2)) / (2^4 - 1),

and the error of X* is stated as rms(X_n - X_(n/2)) / (2^2 - 1), what would be left of X_n at order 2; on a table, whose
levels are not cut evenly, X* = X_n and its error is stated as 2 rms(X_n - X_(n/2)).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser, Prediction, Same, rewrap
from snrkit.sampling.refine import parts_of, refined
from snrkit.sampling.sample import sample
from snrkit.sampling.solvers import Unipc
from snrkit.sampling.step import BeliefCorrection

FLOW_STEPS = 240  # at least, where a table has as many levels
ORDER, STATED = 4, 2  # of the extrapolation, and of the error that is stated


@dataclass(frozen=True, slots=True)
class Flow:
    """The states of a network's flow at the levels of a grid."""

    states: tuple[Tensor, ...]  # (M, *) float64 at each level, the first and the clean one included
    errors: tuple[float, ...]  # rms of each that is to be expected
    evaluations: int  # of the denoiser, for each first state

    @property
    def error(self) -> float:
        """That of the clean states."""
        return self.errors[-1]


def fine_flow(
    denoise: Denoiser,
    levels: Sequence[Level],
    x: Tensor,
    cond: Cond | None = None,
    guidance: Sequence[BeliefCorrection] = (),
    steps: int = FLOW_STEPS,
) -> Flow:
    """The flow from states x (M, *) at levels[0], with what guides the network; levels of shape ()."""
    parts = parts_of(levels, denoise.process, steps, multiple=2)
    (fine, cost, even), (half, cost_half, _) = (
        _walked(denoise, levels, x, cond, guidance, count) for count in (parts, parts // 2)
    )
    states, errors = [], []
    for state, coarse in zip(fine, half, strict=True):
        moved = state - coarse
        states.append(state + moved / (2**ORDER - 1) if even else state)
        errors.append(rms(moved) / (2**STATED - 1) if even else 2 * rms(moved))
    return Flow(tuple(states), tuple(errors), cost + cost_half)


def _walked(
    denoise: Denoiser,
    levels: Sequence[Level],
    x: Tensor,
    cond: Cond | None,
    guidance: Sequence[BeliefCorrection],
    parts: int,
) -> tuple[list[Tensor], int, bool]:
    """(The states at the levels, the evaluations, whether the steps were cut evenly)."""
    fine = refined(levels, denoise.process, parts)
    kept, visited = [x], set(fine.visited)
    for step in sample(denoise, Unipc(p=3), fine.levels, x, corrections=guidance, cond=cond):
        if step.position.index + 1 in visited:
            kept.append(step.x_next)
    return kept, len(fine.levels) - 1, fine.even


def rms(x: Tensor) -> float:
    """The root mean square over all numbers of x."""
    return float(x.square().mean().sqrt())


def in_parts(denoise: Denoiser, batch: int) -> Denoiser:
    """`denoise` asked about at most `batch` states at once."""

    def answer(x: Tensor, level: Level, told: Level | Same | None, cond: Cond | None) -> Prediction:
        said = []
        for first in range(0, len(x), batch):
            rows = slice(first, first + batch)
            known = told.at(rows) if isinstance(told, Level) else told
            said.append(denoise(x[rows], level.at(rows), told=known, cond=None if cond is None else cond.at(rows)))
        if len(said) == 1:
            return said[0]
        return Prediction(torch.cat([part.x0 for part in said]), torch.cat([part.eps for part in said]))

    return rewrap(denoise, answer)
