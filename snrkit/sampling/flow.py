"""The flow of a network: its fine deterministic trajectory from a first state, which a coarse sampler approximates.

The sampler's grid is refined and walked twice by UniPC with p = 3, whose corrector makes it one of order 4, with n and
with n/2 steps. Where both share their levels the two are extrapolated,

    X* = X_n + (X_n - X_(n/2)) / (2^4 - 1),

and the error of X* is stated as rms(X_n - X_(n/2)) / (2^2 - 1), what would be left of X_n at order 2; on a table, whose
levels are not cut evenly, X* = X_n and its error is stated as 2 rms(X_n - X_(n/2)).

Guidance that has an interval is that of the sampler's steps, as the sampler guides whole ones. The network jumps where
it sets in or ends; the walk has a level there and starts anew, without memory of predictions from before. Such a walk
is not extrapolated either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser, Prediction, Same, rewrap
from snrkit.sampling.corrections.guidance import CLOSE, OfSteps
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
    """The flow from states x (M, *) at levels[0], with what guides the network; levels of shape ().

    A guidance with an interval is to be held to the steps of a sampler (`of_steps`, as `guidance_of` has it).
    """
    course = _course(levels, guidance)
    parts = parts_of(course.levels, denoise.process, steps, multiple=2)
    (fine, cost, even), (half, cost_half, _) = (
        _walked(denoise, course, x, cond, guidance, count) for count in (parts, parts // 2)
    )
    states, errors = [], []
    for state, coarse in zip(fine, half, strict=True):
        moved = state - coarse
        states.append(state + moved / (2**ORDER - 1) if even else state)
        errors.append(rms(moved) / (2**STATED - 1) if even else 2 * rms(moved))
    return Flow(tuple(states), tuple(errors), cost + cost_half)


@dataclass(frozen=True, slots=True)
class _Course:
    """The levels of a grid, and those between them where the network jumps."""

    levels: tuple[Level, ...]
    own: tuple[int, ...]  # places of the grid's
    jumps: tuple[int, ...]  # places where the network jumps


def _course(levels: Sequence[Level], guidance: Sequence[BeliefCorrection]) -> _Course:
    inside, every = list[Level](), list(levels)
    for jump in (jump for each in guidance if isinstance(each, OfSteps) for jump in each.jumps):
        if levels[0].logsnr < jump.logsnr < levels[-1].logsnr:
            inside.append(jump)
            every += [] if any(_same(level, jump) for level in every) else [jump]
    every.sort(key=lambda level: float(level.logsnr))
    own = tuple(place for place, level in enumerate(every) if any(level is one for one in levels))
    places = tuple(place for place, level in enumerate(every) if any(_same(level, jump) for jump in inside))
    return _Course(tuple(every), own, places)


def _same(one: Level, other: Level) -> bool:
    return abs(float(one.logsnr) - float(other.logsnr)) < CLOSE


def _walked(
    denoise: Denoiser,
    course: _Course,
    x: Tensor,
    cond: Cond | None,
    guidance: Sequence[BeliefCorrection],
    parts: int,
) -> tuple[list[Tensor], int, bool]:
    """(The states at the grid's levels, the evaluations, whether the walks of n and n/2 steps can be extrapolated)."""
    fine = refined(course.levels, denoise.process, parts)
    kept, visited, last = [x], {fine.visited[place] for place in course.own}, len(fine.levels) - 1
    for span in pairwise((0, *(fine.visited[place] for place in course.jumps), last)):
        steps = range(*span)
        for step in sample(denoise, Unipc(p=3), fine.levels, x, corrections=guidance, cond=cond, steps=steps):
            x = step.x_next
            if step.position.index + 1 in visited:
                kept.append(x)
    return kept, last, fine.even and not course.jumps


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
