"""What `snrkit certify` tries for one sampler, each at no more evaluations than the sampler has.

In this order, so that the nearest are likely to be tried where time is short: the sampler as it is, steps fitted to
the flow, other solvers, designed grids with fitted steps, and the published corrections and a constant gain on the
sampler's own solver with the coefficients that are nearest to the flow.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from snrkit.commands.compare_rows import with_nfe
from snrkit.commands.design import designs
from snrkit.commands.knobs import coefficients, with_values
from snrkit.commands.tune_flow import fit_table, nearest_to_flow
from snrkit.experiment.flows import FirstStates
from snrkit.sampling.corrections import AnyCorrection, Dcw, EpsilonScaling, Gain
from snrkit.sampling.corrections.dcw import Table
from snrkit.sampling.sampler import Sampler, takes_fit
from snrkit.sampling.solvers import AnySolver, Fitted, Ipndm
from snrkit.sampling.solvers.fitted import Base
from snrkit.sampling.step import GivenFit
from snrkit.shift.bootstrap import Bootstrap

PUBLISHED: dict[str, tuple[AnyCorrection, tuple[str, ...]]] = {  # with the coefficients that are found by flow
    "dcw-pixel": (Dcw(), ("pixel",)),
    "dcw-bands": (Dcw(), ("low", "high")),
    "epsilon-scaling": (EpsilonScaling(), ("scale",)),
    "constant-gain": (Gain(), ("gain",)),
}


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate with its coefficients."""

    sampler: Sampler
    rows: tuple[tuple[float, ...], ...] | None = None  # (steps, terms), of steps that were fitted

    def walked(self, states: FirstStates) -> Tensor:
        """Its clean states (M, *) from these first states."""
        fit = None if self.rows is None else GivenFit(self.rows)
        return states.walked(states.opened(self.sampler, fit))


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to try, and how it is made of first states that are fitted on and others that choose."""

    name: str
    make: Callable[[], Made]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is tried in the place of one sampler, and what it is made with."""

    given: Sampler
    plain: Sampler  # with its guidance and nothing else
    nfe: int
    cost: Callable[[Sampler], int]
    solvers: Sequence[AnySolver]
    fitted: FirstStates
    chosen_on: FirstStates
    bootstrap: Bootstrap

    def every(self) -> Iterator[Candidate]:
        """In order."""
        yield Candidate("as-it-is", lambda: Made(self.given))
        yield from self._fitted()
        yield from self._solvers()
        shape = with_nfe(self.plain.model_copy(update={"solver": Fitted()}), self.nfe, self.cost)
        if shape is not None:
            yield Candidate("designed", lambda: self._designed(shape))
        for name, (correction, names) in PUBLISHED.items():
            yield Candidate(name, lambda c=correction, n=names: self._corrected(c, n))  # type: ignore[misc]

    def _fitted(self) -> Iterator[Candidate]:
        base = self.plain.model_copy(update={"solver": Fitted()})
        found = with_nfe(base, self.nfe, self.cost)
        if found is not None:
            yield Candidate("fitted", lambda: self._with_table(found))
        own = self.plain.solver
        if isinstance(own, Base) and own != Fitted().base:
            on_own = self.plain.model_copy(update={"solver": Fitted(base=own)})
            yield Candidate("fitted-on-own", lambda: self._with_table(on_own))
        if min(self.fitted.x.shape[-2:]) < 2:
            return
        if found is not None:
            by_band = found.model_copy(update={"solver": Fitted(bands="haar", history=1)})
            yield Candidate("fitted-by-band", lambda: self._with_table(by_band))
        table = self.plain.model_copy(update={"corrections": (*self.plain.corrections, Dcw(schedule=Table()))})
        yield Candidate("dcw-table", lambda: self._with_table(table))

    def _solvers(self) -> Iterator[Candidate]:
        for solver in dict.fromkeys((Ipndm(), *self.solvers)):
            other = self.plain.model_copy(update={"solver": solver})
            found = with_nfe(other, self.nfe, self.cost) or with_nfe(other, self.nfe - 1, self.cost)
            if found is not None and not takes_fit(found) and found != self.given:
                yield Candidate(solver.kind.replace("_", "-"), lambda s=found: Made(s))  # type: ignore[misc]

    def _with_table(self, sampler: Sampler) -> Made:
        states = self.fitted.on_grid_of(sampler)
        return Made(sampler, fit_table(states, sampler).rows)

    def _designed(self, shape: Sampler) -> Made:
        fitted, chosen_on = (part.on_grid_of(shape) for part in (self.fitted, self.chosen_on))
        found = min(designs(fitted, chosen_on, shape), key=lambda one: one.distance)
        return Made(found.sampler, found.table.rows)

    def _corrected(self, correction: AnyCorrection, names: Sequence[str]) -> Made:
        sampler = self.plain.model_copy(update={"corrections": (*self.plain.corrections, correction)})
        known = coefficients(sampler)
        chosen = [known[f"{len(self.plain.corrections)}.{name}"] for name in names]
        found = nearest_to_flow(self.fitted, sampler, chosen, self.bootstrap)
        values = tuple(number.value for number in found.values)
        return Made(with_values(sampler, chosen, values))
