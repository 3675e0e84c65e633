"""Coefficients for each step, fitted in turn on the states that the fitted steps before made.

What takes a fit asks for its coefficients within the step (`Fit.of`), so that fitting is sampling with a `Fit` that
solves for them: the terms of step k are to make what is missing between x_(k+1) and the flow's X*_(k+1), by least
squares over all first states, shrunk towards none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from snrkit.base.errors import SnrkitError
from snrkit.diffusion.prediction import Cond, Denoiser
from snrkit.fitting.least_squares import Solved, fit_terms
from snrkit.sampling.flow import Flow
from snrkit.sampling.sample import sample
from snrkit.sampling.sampler import OpenedSampler
from snrkit.sampling.step import GivenFit


@dataclass(slots=True)
class FittingSteps:
    """A fit that is being made: it answers with the coefficients that bring each step nearest to the flow."""

    flow: Flow
    found: list[Solved] = field(default_factory=list)

    def of(self, index: int, x_next: Tensor, terms: Sequence[Tensor]) -> Sequence[float]:
        """Those of step `index`, which they are remembered for."""
        while len(self.found) < index:
            self.found.append(Solved((), 0.0))  # of a step that asked for none
        self.found.append(fit_terms(terms, self.flow.states[index + 1] - x_next))
        return self.found[-1].coefficients


@dataclass(frozen=True, slots=True)
class FittedTable:
    """The coefficients of every step."""

    rows: tuple[tuple[float, ...], ...]  # (steps, terms); 0 where a step has no such term
    shares: tuple[float, ...]  # of each step's plain solution

    @property
    def fit(self) -> GivenFit:
        """As samplers take it."""
        return GivenFit(self.rows)


def fit_steps(
    denoise: Denoiser, opened: OpenedSampler, fitting: FittingSteps, x: Tensor, terms: int, cond: Cond | None = None
) -> FittedTable:
    """Walk an opened sampler that asks `fitting` for `terms` coefficients a step, from states x (M, *)."""
    for step in sample(denoise, opened.solver, opened.levels, x, corrections=opened.corrections, cond=cond):
        x = step.x_next
    steps = len(opened.levels) - 1
    if not fitting.found:
        raise SnrkitError("no step of this sampler takes coefficients; give it more steps")
    found = [*fitting.found, *(Solved((), 0.0) for _ in range(steps - len(fitting.found)))]
    rows = tuple(solved.coefficients + (0.0,) * (terms - len(solved.coefficients)) for solved in found)
    return FittedTable(rows, tuple(solved.share for solved in found))
