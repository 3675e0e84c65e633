"""Coefficients of any correction by least squares to the network's flow, over a whole trajectory.

    R(theta) = E_z |X_K(z; theta) - X*(z)|^2 / d

is made least by Gauss-Newton steps with central differences of the clean states, halved while R grows. The interval
resamples first states at the last derivative, and is wider by what the flow's own error could move.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.fitting.guard import upper_bound
from snrkit.fitting.least_squares import sums
from snrkit.sampling.flow import rms
from snrkit.sampling.step import Range
from snrkit.shift.bootstrap import Bootstrap, Number
from snrkit.shift.flow_distance import per_state

ROUNDS, HALVINGS = 8, 5
ENOUGH = 0.05  # of a fine step of the range, below which a further round moves nothing
OF_NOISES = 0x666C6F77  # the resampling of first states, as Bootstrap numbers what it resamples
ALONG = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of the way from neutral, where the curve is shown

Values = tuple[float, ...]
Walk = Callable[[Values], Tensor]
"""The clean states (M, *) of a sampler with these coefficients, from the same first states every time."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The rms distance to the flow with one coefficient at a value, the others as they were found."""

    value: float
    distance: float


@dataclass(frozen=True, slots=True)
class ByFlow:
    """The coefficients that bring a sampler nearest to the flow."""

    values: tuple[Number, ...]  # each with its interval
    curves: tuple[tuple[CurvePoint, ...], ...]  # of each coefficient
    neutral: float  # rms distance with all of them neutral
    distance: float  # and as found
    flat: bool  # whether no value is shown to be nearer than neutral, on these first states
    walks: int


@dataclass(slots=True)
class _Search:
    walk: Walk
    flow: Tensor
    ranges: Sequence[Range]
    walks: int = 0

    def states(self, values: Values) -> Tensor:
        self.walks += 1
        return self.walk(values)

    def allowed(self, values: Sequence[float]) -> Values:
        return tuple(span.allowed(value) for span, value in zip(self.ranges, values, strict=True))

    def slopes(self, values: Values) -> Tensor:
        """(n, M * d): the derivative of the clean states in each coefficient, by central differences."""
        found = []
        for place, span in enumerate(self.ranges):
            low, high = (self._beside(values, place, way * span.coarse) for way in (-1, 1))
            width = high[place] - low[place]
            found.append((self.states(high) - self.states(low)).flatten() / width)
        return torch.stack(found).cpu()

    def _beside(self, values: Values, place: int, by: float) -> Values:
        return self.allowed([value + by * (i == place) for i, value in enumerate(values)])


def by_flow(walk: Walk, flow: Tensor, ranges: Sequence[Range], bootstrap: Bootstrap, error: float = 0.0) -> ByFlow:
    """Search from neutral; `flow` (M, *) are the clean states of the network's flow, whose rms error is stated."""
    search = _Search(walk, flow, ranges)
    neutral = tuple(span.neutral for span in ranges)
    at_neutral = search.states(neutral)
    values, states, slopes = _descend(search, neutral, at_neutral)
    numbers = _intervals(values, slopes, (states - flow).cpu(), bootstrap, error)
    curves = tuple(_curve(search, values, place, span) for place, span in enumerate(ranges))
    change = per_state(states - flow) - per_state(at_neutral - flow)
    flat = upper_bound(change, 2 * error * rms(states - at_neutral)) >= 0
    return ByFlow(numbers, curves, rms(at_neutral - flow), rms(states - flow), flat, search.walks)


def _descend(search: _Search, values: Values, states: Tensor) -> tuple[Values, Tensor, Tensor]:
    """(The values, their clean states, the last derivative)."""
    slopes = search.slopes(values)
    for _ in range(ROUNDS):
        step = _least_squares(slopes, (states - search.flow).flatten().cpu())
        found = _halved(search, values, states, step)
        if found is None:
            break
        (old, values), states = (values, found[0]), found[1]
        slopes = search.slopes(values)
        if all(abs(a - b) < ENOUGH * s.fine for a, b, s in zip(old, values, search.ranges, strict=True)):
            break
    return values, states, slopes


def _least_squares(slopes: Tensor, residual: Tensor) -> Tensor:
    """-(J J')^+ J r for J (n, N) and r (N,)."""
    step: Tensor = -(torch.linalg.pinv(slopes @ slopes.T, hermitian=True) @ (slopes @ residual))
    return step


def _halved(search: _Search, values: Values, states: Tensor, step: Tensor) -> tuple[Values, Tensor] | None:
    """The first of the step's halves that brings the states nearer; None where none does."""
    before = rms(states - search.flow)
    for halving in range(HALVINGS):
        tried = search.allowed([v + float(s) / 2**halving for v, s in zip(values, step, strict=True)])
        if tried == values:
            return None
        moved = search.states(tried)
        if rms(moved - search.flow) < before:
            return tried, moved
    return None


def _intervals(
    values: Values, slopes: Tensor, residual: Tensor, bootstrap: Bootstrap, error: float
) -> tuple[Number, ...]:
    """Each value with its interval: one Gauss-Newton step for every resample of the first states."""
    by_state = slopes.reshape(len(slopes), len(residual), -1)
    products, along = sums(list(by_state), residual)
    weights = bootstrap.weights(torch.arange(len(residual)), OF_NOISES)
    inverse = torch.linalg.pinv(torch.einsum("rm,mij->rij", weights, products), hermitian=True)
    moved = torch.tensor(values, dtype=torch.float64) - torch.einsum("rij,rj->ri", inverse, weights @ along)
    unsure = error * (inverse[0].diagonal() * by_state.shape[-1]).sqrt()  # of a wrong flow of this rms, at worst
    found = []
    for value, column, more in zip(values, moved.T, unsure.tolist(), strict=True):
        number = bootstrap.number(column)
        found.append(Number(value, min(number.low, value) - more, max(number.high, value) + more))
    return tuple(found)


def _curve(search: _Search, values: Values, place: int, span: Range) -> tuple[CurvePoint, ...]:
    """The distance at values of one coefficient on either side of neutral and of what was found."""
    way = values[place] - span.neutral
    way = way if abs(way) > span.fine else span.coarse
    tried = {span.allowed(span.neutral + share * way) for share in ALONG}
    points = []
    for value in sorted(tried):
        states = search.states(tuple(value if i == place else v for i, v in enumerate(values)))
        points.append(CurvePoint(value, rms(states - search.flow)))
    return tuple(points)
