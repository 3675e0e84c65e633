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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from snrkit.diffusion.level import Level
from snrkit.diffusion.prediction import Cond, Denoiser, Prediction, Same, rewrap
from snrkit.diffusion.process import Process
from snrkit.sampling.corrections.guidance import CLOSE, OfSteps
from snrkit.sampling.refine import Refined, parts_of, refined
from snrkit.sampling.sample import sample
from snrkit.sampling.solvers import Unipc
from snrkit.sampling.step import BeliefCorrection

FLOW_STEPS = 240  # at least, where a table has as many levels
WALKED_STATES = 16  # of each state that is walked, at most: what UniPC holds, or any solver beside a flow
ORDER, STATED = 4, 2  # of the extrapolation, and of the error that is stated


@dataclass(frozen=True, slots=True)
class Flow:
    """The states of a network's flow at the levels of a grid, or at some of them."""

    states: tuple[Tensor, ...]  # (M, *) float64 at each level, in order
    errors: tuple[float, ...]  # rms of each that is to be expected
    evaluations: int  # of the denoiser, for each first state

    @property
    def error(self) -> float:
        """That of the clean states."""
        return self.errors[-1]

    def at(self, places: Sequence[int]) -> "Flow":
        """The flow at some of its levels; it does not hold the states of the others."""
        states, errors = tuple(self.states[place] for place in places), tuple(self.errors[place] for place in places)
        return Flow(states, errors, self.evaluations)


def fine_flow(
    denoise: Denoiser,
    levels: Sequence[Level],
    x: Tensor,
    cond: Cond | None = None,
    guidance: Sequence[BeliefCorrection] = (),
    steps: int = FLOW_STEPS,
    batch: int | None = None,
    places: Sequence[int] | None = None,
) -> Flow:
    """The flow from states x (M, *) at levels[0], with what guides the network; levels of shape ().

    States are walked `batch` at a time, all at once by default, and kept at `places` among the levels alone, at all by
    default: beside these a walk holds a batch of its own. A guidance with an interval is to be held to the steps of a
    sampler (`of_steps`, as `guidance_of` has it).
    """
    course = _course(levels, guidance)
    fine, half = _cut(course, denoise.process, steps)
    even = fine.even and not course.jumps
    wanted = range(len(levels)) if places is None else places
    kept = {place: x if place == 0 else torch.empty_like(x, dtype=torch.float64) for place in wanted}
    squares = {place: torch.zeros((), dtype=torch.float64, device=x.device) for place in wanted}
    for rows in in_rows(len(x), batch):
        own = None if cond is None else cond.at(rows)
        for place, state in _walked(denoise, course, fine, x[rows], own, guidance):
            if place in kept:
                kept[place][rows] = state
        for place, coarse in _walked(denoise, course, half, x[rows], own, guidance):
            if place in kept:
                moved = kept[place][rows] - coarse
                squares[place] += moved.square().sum()
                if even:
                    kept[place][rows] += moved / (2**ORDER - 1)
    share = 1 / (2**STATED - 1) if even else 2.0
    errors = tuple(share * float(square / x.numel()) ** 0.5 for square in squares.values())
    return Flow(tuple(kept.values()), errors, len(fine.levels) + len(half.levels) - 2)


def flow_evaluations(
    levels: Sequence[Level], process: Process, guidance: Sequence[BeliefCorrection] = (), steps: int = FLOW_STEPS
) -> int:
    """How often `fine_flow` asks the denoiser about each first state."""
    return sum(len(each.levels) - 1 for each in _cut(_course(levels, guidance), process, steps))


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


def _cut(course: _Course, process: Process, steps: int) -> tuple[Refined, Refined]:
    """The course with so many steps at least, and with half as many."""
    parts = parts_of(course.levels, process, steps, multiple=2)
    return refined(course.levels, process, parts), refined(course.levels, process, parts // 2)


def _same(one: Level, other: Level) -> bool:
    return abs(float(one.logsnr) - float(other.logsnr)) < CLOSE


def _walked(
    denoise: Denoiser,
    course: _Course,
    fine: Refined,
    x: Tensor,
    cond: Cond | None,
    guidance: Sequence[BeliefCorrection],
) -> Iterator[tuple[int, Tensor]]:
    """(Number, states) of each of the grid's own levels, but for the first; `fine` is the course with cuts."""
    numbers = {fine.visited[place]: number for number, place in enumerate(course.own)}
    starts = (0, *(fine.visited[place] for place in course.jumps), len(fine.levels) - 1)
    for span in pairwise(starts):
        steps = range(*span)
        for step in sample(denoise, Unipc(p=3), fine.levels, x, corrections=guidance, cond=cond, steps=steps):
            x = step.x_next
            if step.position.index + 1 in numbers:
                yield numbers[step.position.index + 1], x


def rms(x: Tensor) -> float:
    """The root mean square over all numbers of x."""
    return float(x.square().mean().sqrt())


def in_rows(count: int, batch: int | None) -> Iterator[slice]:
    """The rows of `count` states, `batch` at a time; None: all at once."""
    size = batch or max(count, 1)
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def in_parts(denoise: Denoiser, batch: int) -> Denoiser:
    """`denoise` asked about at most `batch` states at once."""

    def answer(x: Tensor, level: Level, told: Level | Same | None, cond: Cond | None) -> Prediction:
        said = []
        for rows in in_rows(len(x), batch):
            known = told.at(rows) if isinstance(told, Level) else told
            said.append(denoise(x[rows], level.at(rows), told=known, cond=None if cond is None else cond.at(rows)))
        if len(said) == 1:
            return said[0]
        spreads = [part.spread for part in said if part.spread is not None]
        x0, eps = torch.cat([part.x0 for part in said]), torch.cat([part.eps for part in said])
        return Prediction(x0, eps, torch.cat(spreads) if len(spreads) == len(said) else None)

    return rewrap(denoise, answer)
